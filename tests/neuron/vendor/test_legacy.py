"""AWS's unmodified flash_fwd, of both modules, and flash_attn_bwd, run by the emulation, against float64. Not run where
their files are not to be had:

    XATTN_NXDI_PATH=<a checkout of neuronx-distributed-inference> \\
    XATTN_NEURONXCC_ATTENTION=<attention.py of neuronxcc.nki.kernels> \\
    python -m pytest tests/neuron/vendor/test_legacy.py
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from neuron.vendor.float64 import apart, attention, doubles
from torch import Tensor
from xattn_elsewhere.nki.emulation import kernels, loader

HEADDIM = 64
FLOAT32 = 1e-5
MIXED = 2e-2
SHAPE = (1, 2, 2, 512, 512)

Shape = tuple[int, int, int, int, int]


def tensors(shape: Shape = SHAPE, headdim: int = HEADDIM, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    batch, nheads, nheads_k, seqlen_q, seqlen_k = shape
    torch.manual_seed(seqlen_q)
    sizes = ((nheads, seqlen_q), (nheads_k, seqlen_k), (nheads_k, seqlen_k), (nheads, seqlen_q))
    return [torch.randn(batch, heads, seqlen, headdim).to(dtype) for heads, seqlen in sizes]


def source(variant: str) -> ModuleType:
    return kernels.legacy(loader.NXDI if variant == "nxdi" else loader.LEGACY)


def forward(variant: str, q: Tensor, k: Tensor, v: Tensor, transposed: bool = False, **options: Any) -> Any:
    module = source(variant)
    config = module.FlashConfig(seq_tile_size=512, should_transpose_v=transposed)
    seed = {} if variant == "nxdi" else {"seed": None}
    values = v.mT.contiguous() if transposed else v
    kernel = module.flash_fwd[k.shape[0], k.shape[1]]
    return kernel(q.mT.contiguous(), k.mT.contiguous(), values, **seed, config=config, **options)


CAUSAL: dict[str, dict[str, Any]] = {"nxdi": {"window_size": (-2, -1)}, "legacy": {}}
VARIANTS = ["nxdi", "legacy"]


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "float32"])
@pytest.mark.parametrize("shape", [SHAPE, (2, 4, 2, 256, 1024), (1, 1, 1, 1024, 512)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_causal(variant: str, shape: Shape, mixed: bool) -> None:
    q, k, v, _ = tensors(shape)
    got = forward(variant, q, k, v, mixed_precision=mixed, **CAUSAL[variant])
    out = got if variant == "nxdi" else got[0]
    wanted, lse = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, causal=True)
    assert apart(out, wanted) < (MIXED if mixed else FLOAT32)
    if variant == "legacy":
        assert apart(got[1].mT.reshape(lse.shape), lse) < (MIXED if mixed else FLOAT32)


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "float32"])
def test_full(mixed: bool) -> None:
    q, k, v, _ = tensors((1, 4, 2, 256, 1024))
    out, lse = forward("legacy", q, k, v, use_causal_mask=False, mixed_precision=mixed)
    wanted, wanted_lse = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5)
    assert apart(out, wanted) < (MIXED if mixed else FLOAT32)
    assert apart(lse.mT.reshape(wanted_lse.shape), wanted_lse) < (MIXED if mixed else FLOAT32)


@pytest.mark.parametrize("window", [1, 2, 100, 128, 700, 2000])
@pytest.mark.parametrize("variant", VARIANTS)
def test_windows(variant: str, window: int) -> None:
    """nxdi: keys behind the query's own; legacy: keys, the query's own with them."""
    q, k, v, _ = tensors((1, 1, 1, 1024, 1024))
    options: dict[str, Any] = {"window_size": (window - 1, -1)} if variant == "nxdi" else {"sliding_window": window}
    got = forward(variant, q, k, v, mixed_precision=False, **options)
    wanted, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, window=window)
    assert apart(got if variant == "nxdi" else got[0], wanted) < FLOAT32


@pytest.mark.parametrize("platform", ["trn1", "trn2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_transposed_values(variant: str, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", platform)
    q, k, v, _ = tensors()
    got = forward(variant, q, k, v, transposed=True, mixed_precision=False, **CAUSAL[variant])
    wanted, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, causal=True)
    assert apart(got if variant == "nxdi" else got[0], wanted) < FLOAT32


# window_size[0], use_causal_mask -> what window the answer is right for, or what is raised.
DOMAIN: dict[tuple[int, bool], Any] = {
    (-1, True): UnboundLocalError,
    (-1, False): UnboundLocalError,
    (-2, True): {"causal": True},
    (-2, False): UnboundLocalError,
    (0, True): {"window": 1},
    (5, True): {"window": 6},
    (5, False): {"window": 6},
}


@pytest.mark.parametrize(("left", "causal"), DOMAIN, ids=str)
def test_where_the_misspelt_mask_of_nxdi_matters(left: int, causal: bool) -> None:
    q, k, v, _ = tensors()
    options: dict[str, Any] = {"window_size": (left, -1), "use_causal_mask": causal, "mixed_precision": False}
    wanted = DOMAIN[left, causal]
    if wanted is UnboundLocalError:
        with pytest.raises(UnboundLocalError, match="causal_mask"):
            forward("nxdi", q, k, v, **options)
        return
    out, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, **wanted)
    assert apart(forward("nxdi", q, k, v, **options), out) < FLOAT32


def test_nxdi_takes_window_0_without_causal_for_something_else() -> None:
    """All keys of the tiles of 512 that begin before the query's tile does."""
    q, k, v, _ = tensors((1, 1, 1, 1024, 1024))
    got = forward("nxdi", q, k, v, window_size=(0, -1), use_causal_mask=False, mixed_precision=False)
    others: list[dict[str, Any]] = [{}, {"causal": True}, {"window": 1}]
    for meant in others:
        wanted, _ = attention(q.double(), k.double(), v.double(), HEADDIM**-0.5, **meant)
        assert apart(got, wanted) > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_queries_of_an_odd_length_are_never_written(variant: str) -> None:
    q, k, v, _ = tensors((1, 1, 1, 200, 512))
    options = {} if variant == "nxdi" else {"config": source("legacy").FlashConfig(seq_tile_size=512, training=False)}
    if variant == "nxdi":
        out = forward("nxdi", q, k, v, window_size=(-2, -1))
    else:
        out = source("legacy").flash_fwd[1, 1](q.mT.contiguous(), k.mT.contiguous(), v, None, **options)
    assert out[:, :, :128].isfinite().all()
    assert out[:, :, 128:].isnan().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("shape", "headdim", "message"),
    [(SHAPE, 192, "head_dim > 128"), ((1, 1, 1, 128, 640), HEADDIM, "divisible by 512")],
    ids=["headdim", "seqlen_k"],
)
def test_rejected(variant: str, shape: Shape, headdim: int, message: str) -> None:
    q, k, v, _ = tensors(shape, headdim)
    with pytest.raises(AssertionError, match=message):
        forward(variant, q, k, v, **CAUSAL[variant])


def test_dropout_needs_a_generator_that_is_not_emulated() -> None:
    q, k, v, _ = tensors((1, 1, 1, 128, 1024))
    kernel = source("legacy").flash_fwd[1, 1]
    config = source("legacy").FlashConfig(seq_tile_size=1024)
    seed = torch.tensor([1], dtype=torch.int32)
    with pytest.raises(
        AttributeError, match=r"language\.random_seed is not emulated; asked for by .*attention\.py, line"
    ):
        kernel(q.mT.contiguous(), k.mT.contiguous(), v, seed, dropout_p=0.5, config=config)


@pytest.mark.parametrize("options", [{}, {"use_causal_mask": True}, {"use_causal_mask": True, "sliding_window": 100}])
@pytest.mark.parametrize("shape", [(1, 2, 2, 256, 256), (2, 4, 2, 512, 512), (1, 1, 1, 1024, 1024)], ids=str)
@pytest.mark.parametrize("sunk", [True, False], ids=["sinks", "no sinks"])
def test_gradients(shape: Shape, options: dict[str, Any], sunk: bool) -> None:
    q, k, v, dout = tensors(shape)
    sink = torch.randn(shape[0], shape[1]) if sunk else None
    leaves = doubles(q, k, v) if sink is None else doubles(q, k, v, sink)
    out, lse = attention(
        leaves[0],
        leaves[1],
        leaves[2],
        HEADDIM**-0.5,
        causal=bool(options),
        window=options.get("sliding_window"),
        sink=leaves[3] if sunk else None,
    )
    wanted = torch.autograd.grad(out, leaves, dout.double())
    tiled = lse.detach().float().reshape(shape[0], shape[1], -1, 128).mT.contiguous()
    transposed = [each.mT.contiguous() for each in (q, k, v, out.detach().float(), dout)]
    if sink is not None:
        options = {**options, "sinks": sink}
    got = kernels.flash_attn_bwd_legacy()[shape[0], shape[2]](*transposed, tiled, None, **options)
    for each, right in zip(got, wanted, strict=True):
        assert apart(each.mT if each.ndim == 4 else each, right) < FLOAT32
