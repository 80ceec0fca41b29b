"""On an NVIDIA GPU: numbers that torch's kernels are known to get wrong, batches past a launch, and bits that stay.

Run as `python -m pytest -q tests/plugins/sdpa/gpu`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plugins.sdpa.gpu.gpu_calls import close, kernels, needs_cuda, oracle, randn, with_grads
from torch import Tensor

import xattn

pytestmark = needs_cuda


def low_lse(seqlen_q: int, seqlen_k: int, headdim: int, nheads: int = 2) -> list[Tensor]:
    """q, k, v, dout with scores about -120, so that lse is below the logarithm of the smallest float32.

    All keys share a large first number, in whose gradients the shares of the keys cancel: what is left there is the
    rounding of bfloat16, so compare from dimension 1 on.
    """
    q = 0.1 * randn(1, seqlen_q, nheads, headdim, seed=1)
    k = 0.1 * randn(1, seqlen_k, nheads, headdim, seed=2)
    q[..., 0], k[..., 0] = 1.0, -120 * headdim**0.5
    return [q, k, randn(1, seqlen_k, nheads, headdim, seed=3), randn(1, seqlen_q, nheads, headdim, seed=4)]


@pytest.mark.parametrize("headdim", [32, 64, 128])
@pytest.mark.parametrize("seqlen", [128, 192, 200, 640, 704, 768, 1088])
@pytest.mark.parametrize("kind", ["bool", "all", "bias", "causal mask"])
def test_gradients_beside_a_mask(kind: str, seqlen: int, headdim: int) -> None:
    """pytorch#196678: dq was all NaN at seqlen % 128 == 64."""
    q, k, v, dout = low_lse(seqlen, seqlen, headdim)
    tril = torch.ones(seqlen, seqlen, dtype=torch.bool, device="cuda").tril()
    kinds: dict[str, dict[str, Any]] = {
        "bool": {"mask": tril},
        "all": {"mask": torch.ones_like(tril)},
        "bias": {"bias": torch.zeros(seqlen, seqlen, dtype=q.dtype, device="cuda").masked_fill(~tril, -torch.inf)},
        "causal mask": {"mask": torch.ones_like(tril), "causal": True},
    }
    options = kinds[kind]
    close(with_grads(q, k, v, dout, **options, backend="sdpa"), oracle(q, k, v, dout, **options), first=1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(1, 128), (1, 1024), (64, 192), (128, 128), (704, 704), (256, 704)])
def test_gradients_of_a_low_lse(seqlen_q: int, seqlen_k: int, causal: bool) -> None:
    """NVIDIA/cudnn-frontend#1072: dk and dv were NaN for one query. Many heads, so that the problem is large."""
    q, k, v, dout = low_lse(seqlen_q, seqlen_k, 128, nheads=64)
    close(with_grads(q, k, v, dout, causal=causal, backend="sdpa"), oracle(q, k, v, dout, causal=causal), first=1)


KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    # (batch, seqlen_q, seqlen_k, nheads, nheads_k, headdim)
    "prefill": ((4, 4096, 4096, 32, 8, 128), {"causal": True}),
    "short prefill": ((2, 512, 512, 8, 8, 64), {"causal": True}),
    "decode": ((8, 1, 4096, 32, 8, 128), {}),
    "chunk": ((2, 64, 2048, 8, 2, 128), {"causal": True}),
    "lse": ((2, 1024, 1024, 8, 8, 64), {"return_lse": True}),
    "window": ((2, 1024, 1024, 8, 8, 64), {"window": (128, 0)}),
    "softcap": ((1, 512, 512, 4, 4, 64), {"softcap": 20.0}),
}


def tensors_of(name: str) -> tuple[list[Tensor], dict[str, Any]]:
    (batch, seqlen_q, seqlen_k, nheads, nheads_k, headdim), options = KINDS[name]
    shapes = (seqlen_q, nheads), (seqlen_k, nheads_k), (seqlen_k, nheads_k)
    return [randn(batch, s, n, headdim, seed=i) for i, (s, n) in enumerate(shapes)], options


@pytest.mark.parametrize("name", KINDS)
def test_a_shape_that_recurs_keeps_its_bits(name: str) -> None:
    tensors, options = tensors_of(name)
    first = with_grads(*tensors, **options, backend="sdpa")[0]
    for _ in range(40):
        assert torch.equal(with_grads(*tensors, **options, backend="sdpa")[0], first)


@pytest.mark.parametrize("name", KINDS)
def test_it_runs_what_explain_says(name: str) -> None:
    tensors, options = tensors_of(name)
    said = xattn.explain(*tensors, **options, backend="sdpa").kernel
    assert said is not None
    for _ in range(12):
        ran = kernels(lambda: xattn.attention(*tensors, **options, backend="sdpa"))
    assert any("cudnn" in each.lower() for each in ran) is ("cuDNN" in said), (said, ran)


def test_a_growing_cache_is_never_planned() -> None:
    q, cache = randn(8, 1, 32, 128), randn(8, 400, 8, 128)
    for length in range(300, 330):
        for _ in range(10):
            ran = kernels(lambda n=length: xattn.attention(q, cache[:, :n], cache[:, :n], causal=True, backend="sdpa"))
        assert not any("cudnn" in each.lower() for each in ran)


MANY: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "lse": {"return_lse": True},
    "window": {"window": (1, 0)},
    "softcap": {"softcap": 5.0},
    "lengths": {"seqlens_k": True},
    "mask": {"mask": True},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("seqlen_q", [1, 3])
@pytest.mark.parametrize("name", MANY)
def test_a_batch_of_70_000(name: str, seqlen_q: int, dtype: torch.dtype) -> None:
    batch = 70_000
    options = dict(MANY[name])
    if name == "softcap":  # blocks of matmuls, row by row
        batch = 66_000
    if name == "lengths":
        if dtype == torch.float32:
            pytest.skip("seqlens_k is for half types on a GPU")
        options["seqlens_k"] = torch.arange(batch, dtype=torch.int32, device="cuda") % 5
    if name == "mask":
        options["mask"] = (torch.arange(batch * 4, device="cuda") % 3 != 0).view(batch, 1, 1, 4)
    q, k, v = (randn(batch, s, 2, 8, dtype=dtype, seed=i) for i, s in enumerate((seqlen_q, 4, 4)))
    got = with_grads(q, k, v, **options, backend="sdpa")
    close(got, oracle(q, k, v, **options))


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_a_batch_of_70_000(causal: bool) -> None:
    q, k, v, dout = (randn(70_000, s, 2, 8, seed=i) for i, s in enumerate((1, 4, 4, 1)))
    close(with_grads(q, k, v, dout, causal=causal, backend="sdpa"), oracle(q, k, v, dout, causal=causal), first=1)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (64, 0)}], ids=str)
def test_compiled_calls_and_their_gradients(options: dict[str, Any], dynamic: bool) -> None:
    """Flash is called below F.scaled_dot_product_attention in graphs too: torch may pick cuDNN for every length."""
    torch._dynamo.reset()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return xattn.attention(q, k, v, **options, backend="sdpa")  # type: ignore[no-any-return]

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic)
    for seqlen in (128, 192, 256):
        q, dout = randn(2, seqlen, 4, 64, seed=1), randn(2, seqlen, 4, 64, seed=4)
        k, v = randn(2, seqlen, 2, 64, seed=2), randn(2, seqlen, 2, 64, seed=3)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = compiled(*leaves)
        got = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
        close(got, oracle(q, k, v, dout, **options))
