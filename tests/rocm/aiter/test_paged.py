"""The installed aiter's kernels of paged attention over the suite's pages, each by its name, asked without lse, which
none returns."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
import torch
from support import extended
from xattn_conformance.case import Case
from xattn_conformance.ops.call import execute
from xattn_conformance.ops.registry import OPS
from xattn_conformance.tolerance.arithmetic import CANONICAL
from xattn_conformance.tolerance.compare import compare
from xattn_elsewhere.aiter.interpreter import in_reverse

import xattn

OP = OPS["paged_attention"]
HALVES = ("float16", "bfloat16")
# Each kernel's dtypes, of which a case has one, in turn.
KERNELS = {
    "unified_attention": HALVES,
    "pa_decode": ("float32", *HALVES),
    "pa_prefill": ("float32", *HALVES),
    "chunked_prefill": ("float32",),
    "extend": ("float32", *HALVES),
}


def served(kernel: str) -> list[Case]:
    """The small cases that then reach it; those that ask for no lse anyway the suite itself has."""
    found = []
    for case in (case for case in OP.cases() if case.options.get("return_lse")):
        asked = msgspec.structs.replace(case, options={**case.options, "return_lse": False})
        shape, dtypes = case.shape, KERNELS[kernel]
        small = shape["batch"] * shape["nheads"] * shape["seqlen_q"] * shape["seqlen_k"] <= 2**14
        turn = dtypes[case.seed % len(dtypes)]
        if case.level not in ("core", "extended") or case.dtype != turn or not small or case.title.startswith("knob."):
            continue
        if not OP.explain(OP.call(asked, OP.problem(asked), "cpu"), f"aiter-triton.{kernel}").reasons:
            found.append(asked)
    return found


SERVED = {kernel: served(kernel) for kernel in KERNELS}


def chosen() -> list[Any]:
    """Of every kernel a case for each set of features; what has one that was there is for `make extended`."""
    found: list[Any] = []
    for kernel, cases in SERVED.items():
        seen: set[frozenset[str]] = set()
        for case in cases:
            features = frozenset(case.features) - {"paged.return_lse"}
            found += extended((kernel, case)) if features in seen else [(kernel, case)]
            seen.add(features)
    return found


@pytest.mark.parametrize(
    ("kernel", "features"),
    {
        "unified_attention": "softcap sinks window alibi_slopes gqa stale_pages out_dtype",
        "pa_decode": "gqa stale_pages out_dtype",
        "pa_prefill": "alibi_slopes gqa stale_pages out_dtype padding",
        "chunked_prefill": "gqa",
        "extend": "headdim_v tree gqa stale_pages out_dtype padding",
    }.items(),
)
def test_every_feature_of_a_kernel_is_among_the_cases(kernel: str, features: str) -> None:
    found = {feature for case in SERVED[kernel] for feature in case.features}
    assert {f"paged.{feature}" for feature in features.split()} <= found


@pytest.mark.parametrize("of", chosen(), ids=lambda of: f"{of[0]}-{of[1].id}")
def test_asked_without_lse(of: tuple[str, Case]) -> None:
    kernel, case = of
    judged(case, f"aiter-triton.{kernel}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_with_the_programs_in_reverse(kernel: str) -> None:
    """What depends on their order is a race."""
    with in_reverse():
        judged(SERVED[kernel][-1], f"aiter-triton.{kernel}")


def judged(case: Case, backend: str) -> None:
    problem = OP.problem(case)
    got = OP.call(case, problem, "cpu").run(backend, execute)
    expected = OP.expected(case, problem, CANONICAL)
    comparison = compare(expected, {name: OP.layout(name, tensor) for name, tensor in got.items()})
    assert not comparison.failed, [check for check in comparison.checks if not check.ok]


def pool(block_size: int, headdim: int = 16, pages: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(block_size)
    k, v = torch.randn(2, pages, block_size, 2, headdim, generator=generator).half()
    return k, v


def close(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *batch: torch.Tensor, kernel: str = "unified_attention",
    **options: Any,
) -> None:  # fmt: skip
    got = xattn.paged_attention(q, k, v, *batch, backend=f"aiter-triton.{kernel}", **options)
    want = xattn.paged_attention(q.double(), k.double(), v.double(), *batch, backend="reference", **options)
    torch.testing.assert_close(got.double(), want, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("kernel", "block_size"),
    [("unified_attention", 16), ("unified_attention", 64), ("unified_attention", 128), ("pa_decode", 64)],
)
def test_decoding_with_the_keys_split(kernel: str, block_size: int) -> None:
    """More than 512 or 1,024 keys, and a sequence without any (pa-decode-length-0)."""
    k, v = pool(block_size)
    lengths = torch.tensor([530 if kernel == "unified_attention" else 1100, 0, 3], dtype=torch.int32)
    table = torch.arange(3 * 80, dtype=torch.int32).view(3, 80) % 40
    close(torch.randn(3, 4, 16).half(), k, v, table, lengths, kernel=kernel, unseen_finite=True)


QUERIES, KEYS = [5, 0, 3, 7, 1, 40, 0], [30, 9, 0, 3, 17, 41, 0]


@pytest.mark.parametrize("kernel", ["pa_prefill", "chunked_prefill", "extend"])
@pytest.mark.parametrize("padding", [2, *extended(0)])
def test_every_mix_of_queries_and_keys(kernel: str, padding: int) -> None:
    """prefill-more-queries-than-keys, chunked-writes-for-idle-sequences: sequences without queries, without keys, with
    more queries than keys, single queries, and rows of nobody."""
    k, v = (x.float() for x in pool(16))
    lengths = torch.tensor(KEYS, dtype=torch.int32)
    starts = torch.tensor([0, *QUERIES]).cumsum(0, dtype=torch.int32)
    table = torch.full((len(KEYS), 3), -1, dtype=torch.int32)
    for sequence, keys in enumerate(KEYS):
        for page in range(-(-keys // 16)):
            table[sequence, page] = 5 * sequence + page
    q = torch.randn(sum(QUERIES) + padding, 4, 16)
    for order in (nullcontext(), in_reverse()):
        with order:
            close(q, k, v, table, lengths, starts, kernel=kernel, unseen_finite=True)


def test_trees() -> None:
    """extend-mask-beside-causal, extend-hidden-tile-is-nan: of sequences with and without a prefix, with more queries
    than keys, and tokens that see nothing. What nobody sees holds NaN."""
    queries, keys = [5, 3, 7, 1, 6], [30, 0, 3, 17, 6]
    k, v = (x.float() for x in pool(16))
    table = torch.arange(10, dtype=torch.int32).view(5, 2)
    lengths, starts = torch.tensor(keys, dtype=torch.int32), torch.tensor([0, *queries]).cumsum(0, dtype=torch.int32)
    tree = torch.rand(sum(queries) + 2, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    tree[16:22, 2], tree[17] = False, False  # of the last sequence
    k[8, 2], v[8, 2] = torch.nan, torch.nan
    q = torch.randn(sum(queries) + 2, 4, 16)
    q[-2:] = torch.nan
    for order in (nullcontext(), in_reverse()):
        with order:
            close(q, k, v, table, lengths, starts, kernel="extend", causal=False, tree_mask=tree)


def test_a_step_without_queries_reads_no_page() -> None:
    """chunked-writes-for-idle-sequences: rows of nobody, and full pages, past which the table has no entry."""
    k, v = (torch.full((1, 16, 2, 16), torch.nan) for _ in range(2))
    table, lengths, starts = (torch.tensor(x, dtype=torch.int32) for x in ([[-1], [-1]], [16, 16], [0, 0, 0]))
    q = torch.randn(3, 4, 16)
    bounds: Any = {"max_seqlen_q": 2, "max_seqlen_k": 16}
    out = xattn.paged_attention(
        q, k, v, table, lengths, starts, **bounds, unseen_finite=True, backend="aiter-triton.chunked_prefill"
    )
    assert (out == 0).all()


def test_extending_heads_of_192_and_128_with_softcap() -> None:
    k, v = pool(24, 192)
    lengths, starts = (torch.tensor(x, dtype=torch.int32) for x in ([30, 5], [0, 7, 9]))
    table = torch.tensor([[3, 1], [2, -1]], dtype=torch.int32)
    close(torch.randn(9, 4, 192).half(), k, v[..., :128], table, lengths, starts, kernel="extend", softcap=3.0)


@pytest.mark.parametrize("kernel", ["pa_decode", "pa_prefill", "chunked_prefill", "extend"])
def test_a_page_past_2_to_the_31_elements(kernel: str) -> None:
    """pages-of-32-bits: a pool whose pages lie far apart, of memory that is never touched."""
    far = torch.empty(2**31 + 2**20, dtype=torch.float32)
    k, v = (far.as_strided((2, 16, 1, 16), (2**31, 32, 32, 1), offset) for offset in (0, 16))
    k[1], v[1] = torch.randn(2, 16, 1, 16)
    table, lengths = torch.tensor([[1]], dtype=torch.int32), torch.tensor([9], dtype=torch.int32)
    q = torch.randn(1, 2, 16)
    got = xattn.paged_attention(q, k, v, table, lengths, backend=f"aiter-triton.{kernel}", unseen_finite=True)
    want = xattn.paged_attention(q.double(), k[1:].double(), v[1:].double(), table - 1, lengths, backend="reference")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


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
