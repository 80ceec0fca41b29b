"""Which of aiter's two decode kernels a step goes to, and what the assembly has kernels for.

aiter's own `paged_attention_common` chooses by the number of compute units, and hands its assembly no scale. xattn
makes the same choice and calls either by itself.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

from xattn import PagedRequest, Reason
from xattn.plugin import dtype_name
from xattn.plugin.constant import traced_as_constant
from xattn_rocm.archs import ARCHS

# How exactly the assembly works with FP8 pages, as aiter numbers it: 0, 1 or 2.
PRECISION = "XATTN_AITER_HIGH_PRECISION"
_UNITS = {"gfx942": 304, "gfx950": 256}

# hsa/<arch>/pa/pa_asm.csv: of one query a sequence, by the dtypes of queries and pages and the keys of a page, the
# groups that there are kernels for, each with its precisions.
Groups = dict[int, tuple[int, ...]]
_ONE: Groups = {8: (0,), 16: (0,)}
_FP8: Groups = {8: (0, 1, 2), 16: (0,)}
_BOTH: dict[tuple[str, str, int], Groups] = {
    ("bf16", "bf16", 16): _ONE,
    ("fp16", "fp16", 16): _ONE,
    ("bf16", "int8", 16): _ONE,
    ("fp16", "int8", 16): _ONE,
    ("bf16", "fp8", 16): _FP8,
    ("fp16", "fp8", 16): _FP8,
}
KERNELS: dict[str, dict[tuple[str, str, int], Groups]] = {
    "gfx942": {**_BOTH, ("bf16", "fp8", 1024): {10: (0,)}},
    "gfx950": _BOTH,
}


def kind(dtype: torch.dtype, arch: str | None) -> str:
    """What aiter calls a dtype; "" for what it has not, and for FP8 of another arch's flavour."""
    if dtype.itemsize == 1 and dtype.is_floating_point:
        known = ARCHS.get(arch or "")
        return "fp8" if known is not None and known.fp8 == dtype else ""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}.get(dtype, "")


@traced_as_constant
def precision() -> int | None:
    """What the environment asks for, 1 by default; None for what is no level."""
    told = os.environ.get(PRECISION, "1")
    return int(told) if told in ("0", "1", "2") else None


def units(arch: str | None) -> int:
    """Compute units: what the card says, and of one that is not there what its arch has."""
    if torch.version.hip is not None and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)
    return _UNITS.get(arch or "", 304)


def prefers_asm(request: PagedRequest) -> bool:
    """aiter's choice, by the bound of sequences. Of other heads it takes HIP."""
    if request.headdim != 128:
        return False
    return (
        precision() == 2
        or request.cache_dtype == torch.int8
        or request.batch * request.nheads > 2 * units(request.arch)
    )


def asm_group(request: PagedRequest) -> tuple[int, tuple[int, ...]] | None:
    """The group of the kernel that the assembly would be looked up by, and its precisions: the group itself, or the
    next multiple of 8. None where there is none."""
    pair = kind(request.dtype, request.arch), kind(request.cache_dtype, request.arch), request.block_size
    groups = KERNELS.get(request.arch or "", {}).get(pair, {})
    for group in (request.group, -(-request.group // 8) * 8):
        if group in groups:
            return group, groups[group]
    return None


Kernel = Literal["asm", "hip"]


def asm_reasons(request: PagedRequest, cuts_blocks: bool) -> list[Reason]:
    """What stops the assembly. cuts_blocks: this release keeps 16 bits of a block's number."""
    found = []
    if (request.headdim, request.headdim_v) != (128, 128):
        # pa-asm-any-headdim
        found.append(Reason("headdim", (request.headdim, request.headdim_v), "128 and 128, of aiter's assembly"))
    elif request.scale is not None and request.scale != 128**-0.5:
        # pa-asm-has-no-scale
        hint = "aiter's assembly has no argument for it. Scale q: q * (scale * 128**0.5), where rounding allows."
        found.append(Reason("scale", request.scale, f"1/sqrt(128), {128**-0.5}", hint))
    if request.format != "asm":
        # pa-asm-shuffled-values
        found.append(Reason("format", request.format, '"asm", of aiter\'s assembly'))
    if request.alibi_slopes is not None:
        found.append(Reason("alibi_slopes", "given", "off, of aiter's assembly"))
    if cuts_blocks and request.num_blocks > 2**16:
        # pa-asm-block-65536
        hint = "This release reads other pages from there on: aiter 0.1.17 does not."
        found.append(Reason("k_cache", f"{request.num_blocks} blocks", f"up to {2**16}", hint))
    level, kernels = precision(), asm_group(request)
    if level is None:
        found.append(Reason("environment", f"{PRECISION}={os.environ[PRECISION]}", "0, 1 or 2"))
    if kernels is None:
        # pa-asm-kernels
        got = f"groups of {request.group}, pages of {request.block_size} of {dtype_name(request.cache_dtype)}"
        found.append(Reason("kernel", got, f"one of aiter's table for {request.arch}"))
    elif level == 2 and request.cache_dtype.itemsize == 1 and 2 not in kernels[1]:
        found.append(Reason("environment", f"{PRECISION}=2", f"{kernels[1]}, of groups of {kernels[0]}"))
    return found


def hip_reasons(request: PagedRequest) -> list[Reason]:
    """What stops `paged_attention_rocm`."""
    found = []
    if request.headdim not in (64, 128, 256) or request.headdim != request.headdim_v:
        heads = request.headdim, request.headdim_v
        found.append(Reason("headdim", heads, "64, 128 or 256 of keys and of values, of aiter's HIP kernel"))
    if request.cache_dtype != request.dtype:
        # pa-hip-rounds-queries
        hint = "Of FP8 pages it rounds the queries to FP8 too; of int8 ones it has none."
        found.append(Reason("k_cache", dtype_name(request.cache_dtype), "the dtype of q, of aiter's HIP kernel", hint))
    if request.format is None:
        found.append(Reason("format", None, '"vllm" or "asm", of aiter\'s HIP kernel'))
    if request.block_size != 16 or request.group > 16:
        got = f"pages of {request.block_size}, groups of {request.group}"
        found.append(Reason("kernel", got, "pages of 16 and groups up to 16, of aiter's HIP kernel"))
    if request.alibi_slopes is not None and len(request.alibi_slopes.shape) == 2:
        found.append(Reason("alibi_slopes", request.alibi_slopes, "(nheads,)"))
    return found
