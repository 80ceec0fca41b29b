"""`unified_attention` of the installed aiter over the suite's pages, asked without lse, which it does not return."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
import torch
from xattn_conformance.case import Case
from xattn_conformance.ops.call import execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare

import xattn

OP = OPS["paged_attention"]


def served() -> list[Case]:
    """The small cases that then reach it, in the dtypes in turn; those that ask for none the suite itself has."""
    found = []
    for case in (case for case in OP.cases() if case.options.get("return_lse")):
        asked = msgspec.structs.replace(case, options={**case.options, "return_lse": False})
        shape = case.shape
        small = shape["batch"] * shape["nheads"] * shape["seqlen_q"] * shape["seqlen_k"] <= 2**14
        turn = ("float16", "bfloat16")[case.seed % 2]
        if case.level not in ("core", "extended") or case.dtype != turn or not small or case.title.startswith("knob."):
            continue
        if not OP.explain(OP.call(asked, OP.problem(asked), "cpu"), "aiter-triton").reasons:
            found.append(asked)
    return found


SERVED = served()


def test_every_feature_of_the_kernel_is_among_the_cases() -> None:
    features = Counter(feature for case in SERVED for feature in case.features)
    for name in ("softcap", "sinks", "window", "alibi_slopes", "gqa", "stale_pages", "out_dtype"):
        assert features[f"paged.{name}"] >= 1, features


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_asked_without_lse(case: Case) -> None:
    problem = OP.problem(case)
    got = OP.call(case, problem, "cpu").run("aiter-triton", execute)
    expected = OP.expected(case, problem, CANONICAL)
    comparison = compare(expected, {name: OP.layout(name, tensor) for name, tensor in got.items()})
    assert not comparison.failed, [check for check in comparison.checks if not check.ok]


def pool(block_size: int, headdim: int = 16, pages: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(block_size)
    k, v = torch.randn(2, pages, block_size, 2, headdim, generator=generator).half()
    return k, v


def close(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *batch: torch.Tensor, **options: Any) -> None:
    got = xattn.paged_attention(q, k, v, *batch, backend="aiter-triton", **options)
    want = xattn.paged_attention(q.double(), k.double(), v.double(), *batch, backend="reference", **options)
    torch.testing.assert_close(got.double(), want, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_decoding_with_the_keys_split(block_size: int) -> None:
    """More than 512 keys, and a sequence without any."""
    k, v = pool(block_size)
    lengths = torch.tensor([530, 0, 3], dtype=torch.int32)
    table = torch.arange(3 * 40, dtype=torch.int32).view(3, 40) % 40
    close(torch.randn(3, 4, 16).half(), k, v, table, lengths, unseen_finite=True)


@pytest.mark.parametrize("unseen_finite", [False, True])
@pytest.mark.parametrize("block_size", [16, 64])
def test_low_scores_behind_a_window(block_size: int, unseen_finite: bool) -> None:
    """unified-hidden-tile-is-0: all scores near -256, of a page that the first queries see nothing of."""
    k = -8 + torch.rand(20, block_size, 1, 16).half() / 8
    v = torch.randn(20, block_size, 1, 16).half()
    starts, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([0, 40], [200]))
    table = torch.arange(20, dtype=torch.int32).unsqueeze(0).flip(1)[:, : -(-200 // block_size)]
    q = torch.full((40, 1, 16), 8.0).half()
    close(q, k, v, table, lengths, starts, window=(9, 0), unseen_finite=unseen_finite)


def test_keys_and_values_of_other_strides() -> None:
    k, v = pool(16)
    v = torch.stack((v, v), 1)[:, 1]
    starts, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([0, 3, 3, 4], [30, 0, 17]))
    close(
        torch.randn(6, 4, 16).half(), k, v, torch.tensor([[7, 3], [-1, -1], [0, 7]], dtype=torch.int32), lengths, starts
    )
