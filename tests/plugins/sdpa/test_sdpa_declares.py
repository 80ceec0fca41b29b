"""What the sdpa backend declares, here and for devices that are not here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from xattn_sdpa.attention.kernel import SdpaAttention

from xattn import AttentionRequest, TensorSpec
from xattn.explain import Candidate, explain_request


def request(device: str = "cuda", arch: str | None = "sm_90", **changes: Any) -> AttentionRequest:
    """A square call in bfloat16 on a device, and what is changed in it."""
    sizes = {"batch": 2, "seqlen_q": 1024, "seqlen_k": 1024, "nheads": 8, "nheads_k": 8, "headdim": 64, "headdim_v": 64}
    given: dict[str, Any] = {"device": device, "arch": arch, "dtype": torch.bfloat16, **sizes, **changes}
    return AttentionRequest(**given)


def declared(asked: AttentionRequest) -> Candidate:
    (found,) = [each for each in explain_request(asked).candidates if each.name == "sdpa"]
    return found


HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64
LENGTHS_SPEC = TensorSpec((2,), torch.int32)
SLOPES_SPEC = TensorSpec((8,), torch.float32)
MASK_SPEC = TensorSpec((1024, 1024), torch.bool)
ROCM = {"device": "rocm", "arch": "gfx942"}
CPU: dict[str, Any] = {"device": "cpu", "arch": None}
MPS: dict[str, Any] = {"device": "mps", "arch": None}
XPU: dict[str, Any] = {"device": "xpu", "arch": None}


def bias_spec(dtype: torch.dtype = HALF, keys: int = 1024, grad: bool = False) -> TensorSpec:
    return TensorSpec((1, 8, 1024, keys), dtype, grad)


def ragged(**changes: Any) -> dict[str, Any]:
    return {"seqlens_k": LENGTHS_SPEC, **changes}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"dropout_p": 0.1, "causal": True, "return_lse": True}, ["dropout_p"]),
        ({"dropout_p": 0.1, "causal": True, "window": (64, 0)}, ["dropout_p"]),
        ({"dropout_p": 0.1, "causal": True, "seqlen_q": 512}, ["dropout_p"]),
        ({"dropout_p": 0.1, "mask": MASK_SPEC}, ["dropout_p"]),
        ({"dropout_p": 0.1, "softcap": 5.0}, ["dropout_p"]),
        ({"dropout_p": 0.1, "headdim_v": 128}, ["dropout_p"]),
        ({"dropout_p": 0.1, "dtype": SINGLE}, ["dropout_p"]),
        ({"dropout_p": 0.1, "scale": -1.0}, ["dropout_p"]),
        ({"dropout_p": 0.1, "seqlens_k": LENGTHS_SPEC}, ["dropout_p"]),
        ({"deterministic": True, "requires_grad": True}, ["deterministic"]),
        ({"deterministic": True, "return_lse": True}, ["deterministic"]),
        ({"deterministic": True, "causal": True, "sinks": TensorSpec((8,), HALF)}, ["deterministic"]),
        ({"deterministic": True, "headdim": 60, "headdim_v": 60}, ["deterministic"]),
        ({"deterministic": True, "headdim_v": 128}, ["deterministic"]),
        ({"deterministic": True, "bias": bias_spec(grad=True)}, ["deterministic"]),
        ({"deterministic": True, "sinks": TensorSpec((8,), HALF, True)}, ["deterministic"]),
        (ragged(requires_grad=True), ["seqlens_k"]),
        (ragged(sinks=TensorSpec((8,), HALF, True)), ["seqlens_k"]),
        (ragged(softcap=5.0), ["softcap"]),
        (ragged(alibi_slopes=SLOPES_SPEC), ["alibi_slopes"]),
        (ragged(mask=MASK_SPEC), ["mask"]),
        (ragged(bias=bias_spec()), ["bias"]),
        (ragged(softcap=5.0, mask=MASK_SPEC), ["softcap", "mask"]),
        (ragged(causal=True, align="top_left"), ["align"]),
        (ragged(dtype=SINGLE), ["seqlens_k"]),
        (ragged(dtype=DOUBLE), ["seqlens_k"]),
        (ragged(headdim=264), ["seqlens_k"]),
        (ragged(window=(64, None)), ["seqlens_k"]),
        ({"dtype": torch.float8_e4m3fn}, ["dtype"]),
    ],
    ids=str,
)
def test_what_cuda_cannot_serve(arch: str, changes: dict[str, Any], codes: list[str]) -> None:
    assert_reasons(request(arch=arch, **changes), codes)


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({**ROCM, **ragged()}, ["seqlens_k"]),
        ({**ROCM, "deterministic": True}, ["deterministic"]),
        ({**ROCM, "deterministic": True, "requires_grad": True}, ["deterministic"]),
        ({**ROCM, "dropout_p": 0.1, "return_lse": True}, ["dropout_p"]),
        ({**CPU, "dropout_p": 0.1}, ["dropout_p"]),
        ({**CPU, "dtype": torch.float8_e4m3fn}, ["dtype"]),
        ({"device": "hpu"}, ["device"]),
        ({**XPU, "mask": MASK_SPEC}, ["mask"]),
        ({**XPU, "window": (256, 0)}, ["window"]),
        ({**XPU, "seqlen_q": 512, "causal": True}, ["causal"]),
        ({**XPU, "causal": True, "scale": 0.0}, ["scale"]),
        ({**XPU, "return_lse": True}, ["return_lse"]),
        ({**XPU, **ragged()}, ["seqlens_k"]),
        # pytorch#195910, pytorch#176767, pytorch#149132, pytorch#169222.
        ({**MPS, "causal": True}, ["causal"]),
        ({**MPS, "causal": True, "dtype": torch.float16}, ["causal"]),
        ({**MPS, "headdim_v": 128}, ["headdim_v"]),
        ({**MPS, "nheads_k": 2}, ["gqa"]),
        ({**MPS, "seqlen_q": 1, "seqlen_k": 33}, ["seqlen_k"]),
        ({**MPS, "dtype": DOUBLE}, ["dtype"]),
    ],
    ids=str,
)
def test_what_other_devices_cannot_serve(changes: dict[str, Any], codes: list[str]) -> None:
    assert_reasons(request(**changes), codes)


def assert_reasons(asked: AttentionRequest, codes: list[str]) -> None:
    found = declared(asked)
    assert [reason.code for reason in found.reasons] == codes
    assert found.kernel == ""
    for reason in found.reasons:
        data = reason.as_dict()
        assert data["want"]
        assert data["got"] not in ("", "None", data["want"])
        if reason.code not in ("seqlens_k", "dtype", "gqa"):
            assert reason.got == getattr(asked, reason.code)


DIRECT = "F.scaled_dot_product_attention"
FLASH = "torch's flash kernel"
CUDNN = "torch's cuDNN kernel (its gain pays for a plan of each shape)"
BELOW = "torch's flash kernel, below F.scaled_dot_product_attention"
BLOCKS = "blocks of matmuls"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"causal": True}, FLASH),
        ({"causal": True, "requires_grad": True}, FLASH),
        ({"causal": True, "nheads_k": 2}, FLASH),
        ({"causal": True, "dtype": torch.float16}, FLASH),
        ({"causal": True, "arch": "sm_80"}, FLASH),
        ({"causal": True, **ROCM}, f"{DIRECT} (as torch picks)"),
        ({"causal": True, "arch": "sm_75"}, f"{DIRECT} (as torch picks)"),
        ({"causal": True, "arch": "sm_100"}, FLASH),
        # cuDNN does not repeat itself, has no dropout here, and no short or odd sizes.
        ({"causal": True, "deterministic": True}, "torch's flash kernel"),
        ({"seqlen_q": 1, "seqlen_k": 257, "deterministic": True}, "torch's flash kernel"),
        ({"seqlen_q": 1, "nheads_k": 2, "deterministic": True, "arch": "sm_80"}, "torch's flash kernel"),
        ({"causal": True, "dropout_p": 0.1}, FLASH),
        ({"causal": True, "headdim": 60, "headdim_v": 60}, f"{DIRECT} (as torch picks)"),
        ({"seqlen_q": 64, "seqlen_k": 64}, FLASH),
        # A band that hides nothing is none.
        ({"window": (1023, 1023)}, FLASH),
        ({"window": (1022, 1023)}, BELOW),
        ({"seqlen_q": 1, "causal": True}, FLASH),
        # torch's causal counts from the top left.
        ({"seqlen_q": 512, "causal": True}, BELOW),
        ({"window": (256, 0)}, BELOW),
        ({"sinks": TensorSpec((8,), HALF)}, BELOW),
        ({"causal": True, "return_lse": True}, BELOW),
        ({"causal": True, "headdim_v": 128}, BELOW),
        (ragged(causal=True), BELOW),
        (ragged(window=(64, 0)), BELOW),
        (ragged(align="top_left"), BELOW),
        (ragged(deterministic=True, causal=True), BELOW),
        ({"headdim": 264, "headdim_v": 264}, BLOCKS),
        # Masks.
        ({"mask": MASK_SPEC}, f"{DIRECT} (cudnn, masks as bias)"),
        ({"mask": MASK_SPEC, "nheads_k": 2}, f"{DIRECT} (cudnn, masks as bias)"),
        ({"mask": MASK_SPEC, "nheads_k": 2, "arch": "sm_80"}, BLOCKS),
        ({"mask": MASK_SPEC, **ROCM}, BLOCKS),
        ({"mask": TensorSpec((1024, 1), torch.bool)}, BLOCKS),
        ({"mask": MASK_SPEC, "dtype": SINGLE}, f"{DIRECT} (efficient)"),
        ({"mask": MASK_SPEC, "dtype": SINGLE, "nheads_k": 2}, BLOCKS),
        ({"bias": bias_spec()}, f"{DIRECT} (cudnn, masks as bias)"),
        ({"bias": bias_spec(grad=True)}, BLOCKS),
        ({"bias": bias_spec(SINGLE)}, BLOCKS),
        ({"bias": bias_spec(keys=1)}, BLOCKS),
        ({"bias": bias_spec(SINGLE), "dtype": SINGLE}, f"{DIRECT} (efficient)"),
        ({"bias": bias_spec(HALF), "dtype": SINGLE}, BLOCKS),
        # Other dtypes.
        ({"causal": True, "dtype": SINGLE}, f"{DIRECT} (efficient)"),
        ({"dtype": SINGLE, "nheads_k": 2}, f"{DIRECT} (efficient, a call for each query head of a group)"),
        ({"dtype": SINGLE, "window": (256, 0)}, BLOCKS),
        ({"dtype": DOUBLE}, BLOCKS),
        ({"dtype": DOUBLE, "causal": True, **ROCM}, BLOCKS),
        # Features.
        ({"softcap": 5.0}, BLOCKS),
        ({"alibi_slopes": SLOPES_SPEC}, BLOCKS),
        # Apple's and Intel's GPUs: what torch's own attention is not known to get wrong.
        ({"causal": True, **XPU}, DIRECT),
        ({"nheads_k": 2, **XPU}, DIRECT),
        ({"seqlen_q": 1, "causal": True, **XPU}, DIRECT),
        ({"window": (1023, 1023), **XPU}, DIRECT),
        ({"causal": True, "dtype": SINGLE, **MPS}, DIRECT),
        (MPS, DIRECT),
        ({"seqlen_q": 1, "causal": True, **MPS}, DIRECT),
        # The CPU.
        ({"causal": True, **CPU}, f"{DIRECT} (fused CPU kernel)"),
        ({"mask": MASK_SPEC, **CPU}, f"{DIRECT} (fused CPU kernel)"),
        (
            {"seqlen_q": 1, "nheads_k": 2, **CPU},
            f"{DIRECT} (fused CPU kernel), query heads of a group folded into rows",
        ),
        ({"window": (256, 0), **CPU}, "torch's fused CPU kernel, tile by tile, merged through lse"),
        ({"softcap": 5.0, **CPU}, BLOCKS),
    ],
    ids=str,
)
def test_kernels(changes: dict[str, Any], name: str) -> None:
    found = declared(request(**changes))
    assert found.reasons == ()
    assert found.kernel.startswith(name) if name == BLOCKS else found.kernel == name


BIG: dict[str, Any] = {"batch": 4, "seqlen_q": 4096, "seqlen_k": 4096, "nheads": 32, "headdim": 128, "headdim_v": 128}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        # Without gradients a plan of 60 ms pays for large prompts alone; with them it pays sooner.
        ({**BIG, "nheads_k": 8, "causal": True}, CUDNN),
        ({**BIG, "batch": 1, "causal": True}, FLASH),
        ({**BIG, "batch": 1, "causal": True, "requires_grad": True}, CUDNN),
        ({"batch": 1, "causal": True, "requires_grad": True}, FLASH),
        ({**BIG, "causal": True, "arch": "sm_80"}, FLASH),
        ({**BIG, "causal": True, "arch": "sm_100"}, FLASH),
        ({**BIG, "causal": True, "dropout_p": 0.1}, FLASH),
        ({**BIG, "causal": True, "deterministic": True}, FLASH),
        # A cache has another length at every call: decoding, and a chunk of queries.
        ({**BIG, "batch": 128, "seqlen_q": 1}, FLASH),
        ({**BIG, "batch": 128, "seqlen_q": 512}, FLASH),
        ({**BIG, "batch": 128, "seqlen_q": 512, "requires_grad": True}, CUDNN),
        # NVIDIA/cudnn-frontend#1072: one query with a low lse, dk and dv are NaN.
        ({**BIG, "batch": 128, "seqlen_q": 1, "requires_grad": True}, FLASH),
        # pytorch#196678: beside a mask, at 64 past a multiple of 128, dq is NaN where lse is low.
        *(
            ({"seqlen_q": n, "seqlen_k": n, "mask": TensorSpec((n, n), torch.bool), "requires_grad": grad}, name)
            for n in (192, 704, 1088)
            for grad, name in ((True, BLOCKS), (False, f"{DIRECT} (cudnn, masks as bias)"))
        ),
        ({"seqlen_k": 704, "mask": TensorSpec((1024, 704), torch.bool), "requires_grad": True}, BLOCKS),
        ({"seqlen_q": 704, "seqlen_k": 704, "bias": TensorSpec((704, 704), HALF), "requires_grad": True}, BLOCKS),
        # Without one, too, gradients were wrong there (on an NVIDIA H100).
        ({**BIG, "seqlen_q": 4160, "seqlen_k": 4160, "requires_grad": True}, FLASH),
        ({**BIG, "seqlen_q": 4160, "seqlen_k": 4160}, CUDNN),
        ({"mask": MASK_SPEC, "requires_grad": True}, f"{DIRECT} (cudnn, masks as bias)"),
        ({"seqlen_q": 1, "mask": TensorSpec((1, 1024), torch.bool), "requires_grad": True}, BLOCKS),
        # pytorch#162588: past 2**31 numbers of a mask.
        (
            {"seqlen_q": 2**16, "seqlen_k": 2**15, "mask": TensorSpec((1, 2**15), torch.bool), "dtype": SINGLE},
            BLOCKS,
        ),
    ],
    ids=str,
)
def test_cudnn_is_taken_where_it_is_right_and_pays(changes: dict[str, Any], name: str) -> None:
    found = declared(request(**changes))
    assert found.reasons == ()
    assert found.kernel.startswith(name)


@pytest.mark.parametrize("seqlen", range(1, 400))
def test_no_length_of_a_cache_is_planned_by_cudnn(seqlen: int) -> None:
    for seqlen_q in (1, 16):
        asked = request(batch=64, seqlen_q=seqlen_q, seqlen_k=seqlen * 64, causal=True)
        assert "cuDNN" not in declared(asked).kernel


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("place", [{}, {"arch": "sm_80"}, ROCM, CPU], ids=str)
@pytest.mark.parametrize("dtype", [HALF, SINGLE, DOUBLE], ids=str)
def test_a_scale_that_is_not_positive_never_meets_torchs_mask(
    scale: float, place: dict[str, Any], dtype: torch.dtype
) -> None:
    """Torch's kernels mask with -inf before they scale: -inf * 0 is NaN, -inf * -1 is inf."""
    found = declared(request(causal=True, scale=scale, dtype=dtype, **place))
    assert found.reasons == ()
    assert DIRECT not in found.kernel or found.kernel == BELOW


AT_OFFSET: dict[str, Any] = {"causal": True, "seqlen_q": 512, "align": "offset", "offset_inside": True}


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({}, []),
        ({"offset_inside": False}, []),
        ({"window": (3, 4), "causal": False}, []),
        # Whether flash, which may give way to cuDNN, serves the call is known only when it comes.
        ({"deterministic": True}, ["deterministic"]),
        (ragged(), ["align"]),
        (CPU, []),
        ({**CPU, **ragged(), "deterministic": True}, []),
    ],
    ids=str,
)
def test_what_stops_an_int_align(changes: dict[str, Any], codes: list[str]) -> None:
    assert [reason.code for reason in declared(request(**{**AT_OFFSET, **changes})).reasons] == codes


def test_the_kernel_of_an_int_align() -> None:
    assert declared(request(**AT_OFFSET)).kernel.endswith("or blocks of matmuls, as align falls")
    assert declared(request(**AT_OFFSET, softcap=2.0)).kernel.startswith(BLOCKS)
    assert "tile by tile" in declared(request(**{**AT_OFFSET, **CPU})).kernel


def test_everything_but_dropout_and_bits_of_any_batch_is_declared_for_the_cpu() -> None:
    """What the sdpa backend leaves out, `auto` gives to a backend that holds the whole score matrix."""
    (block,) = [each for each in SdpaAttention.capabilities if each.device == "cpu"]
    assert set(AttentionRequest.vocabulary.feature_names) - block.features == {"dropout_p", "batch_invariant"}
    assert block.grads == set(AttentionRequest.vocabulary.grads)
