"""The sdpa backend's copies, layouts and memory, and its operators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.attention.attention_call import LAYOUTS, AttentionCall
from plugins.sdpa.sdpa_cases import (
    CASES,
    CAUSAL,
    SOFT,
    Case,
    answer,
    assert_near,
    attend,
    doubled,
    window,
)
from support import extended
from torch import Tensor

import xattn
from xattn.measure import memory, operations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("masked", ["unmasked", "bool 2-D", "bool 4-D", "float 4-D"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("nheads_k", [4, 2])
@pytest.mark.parametrize("seqlen_q", [64, 1], ids=["prefill", "decode"])
def test_no_materialising_copies(dtype: torch.dtype, masked: str, causal: bool, nheads_k: int, seqlen_q: int) -> None:
    case = Case(seqlen_q, 64, {"causal": causal}, batch=2, nheads=4, nheads_k=nheads_k, headdim=16, headdim_v=16)
    tensors = {"unmasked": (), "bool 2-D": ("mask of all",), "bool 4-D": ("mask",), "float 4-D": ("bias",)}[masked]
    call = replace(case, dtype=dtype, tensors=tensors).call()
    names = ["q", "k", "v"]
    leaves = call.requiring_grad(set(names))
    for ran in (
        operations(lambda: attend(call)),
        operations(lambda: attend(leaves), [leaves.floats[name] for name in names]),
    ):
        assert ran.materialising() == {}
        for tensor in (*ran.results, *ran.grads):
            assert tensor is not None
            assert tensor.is_contiguous()


def _wider(values: Tensor) -> Tensor:
    """The first dimensions of a bigger head."""
    return torch.cat([values, torch.full_like(values, torch.nan)], dim=3)[..., : values.shape[3]]


WAYS = (
    "top left 129 x 127",
    "window 65, 0",
    "ALiBi past",
    "mask of keys, causal",
    "bias, causal",
    "softcap window",
    "lengths, window",
    "decode",
    "decode mask",
)


@pytest.mark.parametrize(
    "layout", ["bnsh", "expanded", "wider", *extended("bsnh", "sbnh", "sliced", "every other", "one head")]
)
@pytest.mark.parametrize("name", WAYS)
def test_strides(name: str, layout: str) -> None:
    call = replace(CASES[name], batch=2).call()
    arrange = {**LAYOUTS, "wider": _wider}[layout]
    assert_right(replace(call, q=arrange(call.q), k=arrange(call.k), v=arrange(call.v)))


@pytest.mark.parametrize("seqlen", [2, 129])
@pytest.mark.parametrize("options", [{}, CAUSAL, window(65, 0), SOFT], ids=str)
def test_slices_of_a_packed_projection(options: dict[str, Any], seqlen: int) -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(2, seqlen, 3 * 4 * 8, generator=generator, dtype=torch.float64)
    q, k, v = packed.view(2, seqlen, 3, 4, 8).unbind(2)
    assert_right(AttentionCall(q, k, v, options))
    q, k, v = (x.unflatten(2, (-1, 8)) for x in packed.split([6 * 8, 3 * 8, 3 * 8], dim=2))
    assert_right(AttentionCall(q, k, v, options))


def assert_right(call: AttentionCall) -> None:
    want = answer(doubled(call), "reference")
    for out in (attend(call), attend(call, return_lse=True).out):
        assert_near("out", out, want.out, call)
        assert out.is_contiguous()
    for grads in (answer(call, "sdpa").grads, answer(call, "sdpa", plain=True).grads):
        for name, grad in grads.items():
            assert_near(f"d{name}", grad, want.grads[name], call)


def peaks(seqlen_q: int, seqlen_k: int, nheads: int = 1, headdim: int = 16, **arguments: Any) -> tuple[int, int, int]:
    """The most bytes that the forward pass held at once, and the backward pass; and the bytes of q, k, v, out and lse
    together, which are what either returns or less. float32."""
    shapes = (1, seqlen_q, nheads, headdim), *[(1, seqlen_k, nheads, headdim)] * 2
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    result: list[Any] = []
    forward = memory(lambda: result.extend(xattn.attention(q, k, v, backend="sdpa", return_lse=True, **arguments)))
    upstream = torch.randn_like(result[0])
    backward = memory(lambda: torch.autograd.grad(result[0], (q, k, v), upstream))
    return forward.peak, backward.peak, sum(x.nbytes for x in (q, k, v, *result))


@pytest.mark.parametrize("right", [0, 256])
def test_memory_of_a_window_grows_with_the_sequence_alone(right: int) -> None:
    window, found = 256, {}
    for seqlen in (2048, 8192):
        forward, backward, tensors = peaks(seqlen, seqlen, nheads=2, headdim=32, window=(window, right))
        # What is returned, and a tile at a time: 64 rows against 64 + 256 + right keys, a float32 each for its bias and
        # for the kernel's scores, an int64 or a bool on the way: 32 bytes for all of it, whatever seqlen is.
        tile = 32 * 64 * (64 + window + right)
        assert forward < tensors + tile
        # dq, dk and dv, lse without infinities, and what the kernel returns for a tile.
        assert backward < tensors + 2 * tile
        # All in all less than the float32 scores of one head that the window shows.
        assert max(forward, backward) < tensors + 4 * seqlen * (64 + window + right)
        found[seqlen] = forward, backward
    for short, long in zip(found[2048], found[8192], strict=True):
        assert long < 4 * short


# A full score matrix of one head has 4 * 8192 * 8192 bytes; a bool of its shape a quarter of that.
@pytest.mark.parametrize(
    ("most", "seqlen_q", "arguments"),
    [
        pytest.param(1 / 8, 8192, {"causal": True}, id="causal"),
        pytest.param(1 / 8, 6000, {"causal": True}, id="bottom right"),
        pytest.param(1 / 8, 8192, {"causal": True, "sinks": torch.zeros(1)}, id="sinks"),
        pytest.param(1 / 8, 8192, {"causal": True, "alibi_slopes": torch.ones(1)}, id="ALiBi, causal"),
        # 512 rows at a time, distances in int64: 32 MB more than once.
        pytest.param(1 / 2, 8192, {"alibi_slopes": torch.ones(1)}, id="ALiBi"),
        # 2^21 scores at a time, in three matrices.
        pytest.param(1 / 4, 8192, {"causal": True, "softcap": 5.0}, id="softcap"),
    ],
)
def test_nothing_has_the_size_of_the_scores(most: float, seqlen_q: int, arguments: dict[str, Any]) -> None:
    forward, backward, _ = peaks(seqlen_q, 8192, **arguments)
    assert max(forward, backward) < most * 4 * seqlen_q * 8192


def test_memory_of_softcap_grows_with_the_sequence_alone() -> None:
    short, long = peaks(4096, 4096, softcap=5.0), peaks(8192, 8192, softcap=5.0)
    assert long[0] < 3 * short[0]
    assert long[1] < 3 * short[1]


CHECKED = (
    "causal 63 x 65",
    "window 63, 0",
    "ALiBi past",
    "mask 511",
    "bias",
    "softcap window",
    "lengths, mask",
    "decode",
)
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", CHECKED)
def test_operators_are_what_they_register(name: str) -> None:
    case = CASES[name]
    call = replace(case, seqlen_q=min(case.seqlen_q, 17), seqlen_k=min(case.seqlen_k, 19)).call()
    optional = [call.tensors.get(each) for each in ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k")]
    optional[2:4] = [x if x is None else x[(None,) * (4 - x.dim())] for x in optional[2:4]]
    left, right = call.options.get("window", (None, None))
    right = 0 if call.options.get("causal") else right
    args = (call.q, call.k, call.v, *optional, left, right, False, 0.3, call.options.get("softcap"))
    torch.library.opcheck(torch.ops.xattn_sdpa.forward.default, args, test_utils=CHECKS)
    out, lse = torch.ops.xattn_sdpa.forward(*args)
    for dlse in (None, torch.randn_like(lse)):
        given = (torch.randn_like(out), dlse, out, lse, *args, call.tensors.get("bias") is not None)
        torch.library.opcheck(torch.ops.xattn_sdpa.backward.default, given, test_utils=CHECKS)
