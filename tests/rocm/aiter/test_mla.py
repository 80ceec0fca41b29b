"""aiter's Triton kernels of latent attention over the suite's pages and lists, asked without lse."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import torch
from xattn_conformance.case import Case
from xattn_conformance.ops.call import execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare
from xattn_rocm.aiter_triton.mla_attention import common, pages
from xattn_rocm.installation import usable

import xattn

OP = OPS["mla_attention"]
# What the kernels do not have.
_NOT_THERE = ("sinks", "storage", "scale_of", "fp8")
# Of the wheel that the tests run on, lists alone.
HAS_PAGES = common.has_module(usable(), pages.MODULE)


def served() -> list[Case]:
    """The small cases that then reach it: with 16 heads for lists, with or without lse, over pages that are finite or
    not, in the dtypes in turn."""
    found = {}
    for case in OP.cases():
        turn = ("float16", "bfloat16")[case.seed % 2]
        if case.level != "core" or case.dtype != turn or case.options.get("deterministic") == "batch":
            continue
        options = {name: value for name, value in case.options.items() if name not in _NOT_THERE}
        listed = "topk" in options
        shape = {**case.shape, "nheads": 16 if listed else case.shape["nheads"]}
        shape |= {"headdim": 48, "headdim_v": 32} if shape["headdim"] < 100 else {}
        if shape["batch"] * shape["seqlen_q"] * shape["seqlen_k"] * shape["headdim"] > 2**16:
            continue
        for more in ({"return_lse": False}, {"return_lse": False, "unseen_finite": not listed}, {}):
            asked = msgspec.structs.replace(case, options={**options, **more}, shape=shape)
            if not OP.explain(OP.call(asked, OP.problem(asked), "cpu"), "aiter-triton").reasons:
                found[asked.id, str(more)] = asked
    return list(found.values())


SERVED = served()


def test_every_kernel_is_among_the_cases() -> None:
    names = Counter(kernel_of(case).partition(",")[0].rpartition(".")[2] for case in SERVED)
    assert names["unified_attention_sparse_mla"] >= 4
    if HAS_PAGES:
        assert min(names[name] for name in ("mla_decode_fwd", "mla_prefill_fwd", "decode_attention_fwd")) >= 4
        assert any(case.options.get("return_lse") and case.options.get("softcap") for case in SERVED)


def kernel_of(case: Case) -> str:
    return OP.explain(OP.call(case, OP.problem(case), "cpu"), "aiter-triton").kernel


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_asked_for_what_it_has(case: Case) -> None:
    problem = OP.problem(case)
    got = OP.call(case, problem, "cpu").run("aiter-triton", execute)
    comparison = compare(
        OP.expected(case, problem, CANONICAL), {name: OP.layout(name, tensor) for name, tensor in got.items()}
    )
    assert not comparison.failed, [check for check in comparison.checks if not check.ok]


def sparse(q: torch.Tensor, cache: torch.Tensor, lists: torch.Tensor, backend: str) -> torch.Tensor:
    return xattn.mla_attention(q, cache, None, topk_indices=lists, scale=1.0, kv_lora_rank=16, backend=backend)


def test_low_scores_behind_a_tile_of_none() -> None:
    """triton-sparse-mla-none-first: 64 times -1, and then slots whose scores are all near -500."""
    cache = torch.full((8, 16, 1, 32), -4.0, dtype=torch.bfloat16) + torch.rand(8, 16, 1, 32).bfloat16() / 8
    q = torch.full((1, 16, 32), 4.0, dtype=torch.bfloat16)
    lists = torch.cat([torch.full((1, 64), -1), torch.tensor([[5, 99, 40]])], 1).int()
    got, want = (sparse(q, cache, lists, backend).float() for backend in ("aiter-triton", "reference"))
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("block_size", [1, 3, 24, 256])
def test_lists_over_pages_of_any_size(block_size: int) -> None:
    generator = torch.Generator().manual_seed(block_size)
    cache = torch.randn(-(-80 // block_size), block_size, 1, 32, generator=generator).half()
    q = torch.randn(2, 16, 32, generator=generator).half()
    lists = torch.randperm(80, generator=generator)[:14].view(2, 7).int()
    for given in (cache, torch.stack((cache, cache), 1)[:, 1]):
        got, want = (sparse(q, given, lists, backend).float() for backend in ("aiter-triton", "reference"))
        torch.testing.assert_close(got, want, rtol=5e-3, atol=5e-3)


def test_heads_past_the_last_16_are_refused() -> None:
    cache, lists = torch.zeros(4, 16, 1, 32).half(), torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(xattn.UnsupportedError, match=r"nheads=20 .*a multiple of 16"):
        sparse(torch.zeros(1, 20, 32).half(), cache, lists, "aiter-triton")
