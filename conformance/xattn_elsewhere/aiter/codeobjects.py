"""aiter's Triton kernels compiled for AMD GPUs by the Triton of PyPI, which holds all of AMD's compiler: is the code
legal, does it fit in the LDS, does it spill?

    python -m xattn_elsewhere.aiter.codeobjects gfx942 gfx950

compiles what `aiter-triton` would launch for the calls below, and prints a table. Nothing runs. It exits with 1 where
a kernel does not compile or does not fit, because on that GPU the call would raise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from xattn_rocm.archs import ARCHS

import xattn
from xattn.plugin.devices import emulated
from xattn_elsewhere.aiter import source

# Bytes of LDS that a workgroup can have.
LDS = {"gfx942": 64 * 1024, "gfx950": 160 * 1024}


@dataclass(frozen=True)
class Compiled:
    """One kernel on one arch. What is None is unknown, because the kernel did not compile (`error` says why) or because
    xattn refuses the call there (`refused`)."""

    arch: str
    call: str
    kernel: str
    size: int | None = None
    lds: int | None = None
    vgprs: int | None = None
    spills: int | None = None
    matrix: int | None = None
    error: str = ""
    refused: str = ""

    @property
    def legal(self) -> bool:
        """Whether it can be launched, or is never: `aiter-triton` refuses the call."""
        return bool(self.refused) or (self.lds is not None and self.lds <= LDS[self.arch])


def calls() -> list[tuple[str, dict[str, Any]]]:
    """What a model asks for, at least once for each kernel and shape of its tiles: name, and how to call."""
    half, single = torch.bfloat16, torch.float32
    found: list[tuple[str, dict[str, Any]]] = []
    for dtype in (torch.float16, half, single):
        name = str(dtype).removeprefix("torch.")
        for headdim in (64, 128, 256):
            found.append((f"{name} D{headdim} causal", {"dtype": dtype, "headdim": headdim, "causal": True}))
        found.append((f"{name} D128 full", {"dtype": dtype, "headdim": 128}))
        found.append((f"{name} D80 causal", {"dtype": dtype, "headdim": 80, "causal": True}))
        found.append((f"{name} 192/128 causal", {"dtype": dtype, "headdim": 192, "headdim_v": 128, "causal": True}))
        found.append((f"{name} D128 ALiBi", {"dtype": dtype, "headdim": 128, "causal": True, "alibi_slopes": True}))
        for headdim in (64, 128, 256):
            grad = {"dtype": dtype, "headdim": headdim, "grad": True}
            found.append((f"{name} D{headdim} causal, training", {**grad, "causal": True}))
            found.append((f"{name} D{headdim} full, training", grad))
        wide = {"dtype": dtype, "headdim": 192, "headdim_v": 128, "causal": True, "grad": True}
        found.append((f"{name} 192/128 causal, training", wide))
    for headdim in (64, 128, 256):
        base = {"dtype": half, "headdim": headdim, "causal": True}
        found.append((f"bfloat16 D{headdim} softcap", {**base, "softcap": 30.0}))
        found.append((f"bfloat16 D{headdim} window, sinks", {**base, "window": (1023, 0), "sinks": True}))
        found.append((f"bfloat16 D{headdim} decode", {"dtype": half, "headdim": headdim, "seqlen_q": 1}))
        found.append((f"bfloat16 D{headdim} decode, seqlens_k", {**base, "seqlen_q": 1, "seqlens_k": True}))
    for dtype in (half, single):
        name = str(dtype).removeprefix("torch.")
        for headdim in (64, 128, 256):
            found.append((f"{name} D{headdim} HSTU, training", {"dtype": dtype, "headdim": headdim, "hstu": True}))
    for nheads, headdim in ((64, 128), (32, 128), (128, 256)):
        found.append((f"logits of {nheads} heads of {headdim}", {"nheads": nheads, "headdim": headdim}))
    return found


def paged_calls() -> list[tuple[str, dict[str, Any]]]:
    """The kernels over pages that go by their own names."""
    half, single = torch.bfloat16, torch.float32
    found: list[tuple[str, dict[str, Any]]] = []
    for dtype in (half, single):
        name = str(dtype).removeprefix("torch.")
        for headdim in (64, 128, 256):
            # The largest page that is served.
            largest = (2**14 if dtype == half else 2**13) // headdim
            for kernel, block_size in (("pa_decode", 16), ("pa_decode", largest), ("pa_prefill", 16), ("extend", 16)):
                how = {"kernel": kernel, "dtype": dtype, "headdim": headdim, "block_size": block_size}
                found.append((f"{name} D{headdim} {kernel}, pages of {block_size}", how))
        wide = {"kernel": "extend", "dtype": dtype, "headdim": 192, "headdim_v": 128}
        found.append((f"{name} 192/128 extend, softcap", {**wide, "softcap": 30.0}))
        found.append((f"{name} D128 pa_prefill, ALiBi", {"kernel": "pa_prefill", "dtype": dtype, "alibi_slopes": True}))
    chunked = {"kernel": "chunked_prefill", "dtype": single, "block_size": 256}
    return [*found, ("float32 D128 chunked_prefill, pages of 256", chunked)]


def perform_paged(
    *, kernel: str, dtype: torch.dtype, headdim: int = 128, headdim_v: int | None = None, block_size: int = 16,
    alibi_slopes: bool = False, **options: Any,
) -> None:  # fmt: skip
    """The call of two sequences of 2,048 keys, as `perform`."""
    k, v = (torch.zeros(2, block_size, 8, size, dtype=dtype) for size in (headdim, headdim_v or headdim))
    lengths = torch.full((2,), 2048, dtype=torch.int32)
    batch = [torch.zeros(2, 2048 // block_size, dtype=torch.int32), lengths]
    if kernel != "pa_decode":
        batch.append(torch.tensor([0, 128, 129], dtype=torch.int32))
    q = torch.zeros(2 if kernel == "pa_decode" else 129, 32, headdim, dtype=dtype)
    slopes, name = torch.ones(32) if alibi_slopes else None, f"aiter-triton.{kernel}"
    xattn.paged_attention(q, k, v, *batch, alibi_slopes=slopes, unseen_finite=True, backend=name, **options)


def perform_one(**how: Any) -> None:
    """A call of `calls`."""
    if "hstu" in how:
        perform_hstu(how["dtype"], how["headdim"])
    elif "nheads" in how:
        perform_logits(how["nheads"], how["headdim"])
    else:
        perform(**how)


def perform_hstu(dtype: torch.dtype, headdim: int) -> None:
    """Two sequences of 1,024 tokens, forward and backward, with all masks."""
    q, k, v = (torch.zeros(2048, 4, headdim, dtype=dtype, requires_grad=True) for _ in range(3))
    starts, targets = (torch.tensor(x, dtype=torch.int32) for x in ([0, 1024, 2048], [3, 4]))
    out = xattn.hstu_attention(
        q, k, v, starts, norm=1024.0, scale=0.1, num_targets=targets, max_attn_len=100, contextual_seqlen=3,
        backend="aiter-triton",
    )  # fmt: skip
    out.sum().backward()


def perform_logits(nheads: int, headdim: int) -> None:
    """64 queries over 1,024 keys, in the FP8 of the arch."""
    own = ARCHS[str(emulated["cpu"][1])].fp8
    q, k = torch.zeros(64, nheads, headdim).to(own), torch.zeros(1024, headdim).to(own)
    starts = torch.zeros(64, dtype=torch.int32)
    scale = torch.ones(1024)
    xattn.mqa_logits(q, k, torch.zeros(64, nheads), starts, starts + 1024, k_scale=scale, backend="aiter-triton")


def perform(
    *, dtype: torch.dtype, headdim: int, headdim_v: int | None = None, seqlen_q: int = 2048, grad: bool = False,
    sinks: bool = False, alibi_slopes: bool = False, seqlens_k: bool = False, **options: Any,
) -> None:  # fmt: skip
    """The call at 2,048 keys and 32 heads over 8. On the CPU, and its results are nothing: no kernel runs."""
    q = torch.zeros(1, seqlen_q, 32, headdim, dtype=dtype, requires_grad=grad)
    k = torch.zeros(1, 2048, 8, headdim, dtype=dtype, requires_grad=grad)
    v = torch.zeros(1, 2048, 8, headdim_v or headdim, dtype=dtype, requires_grad=grad)
    tensors: dict[str, Any] = {
        "sinks": torch.zeros(32) if sinks else None,
        "alibi_slopes": torch.ones(32) if alibi_slopes else None,
        "seqlens_k": torch.full((1,), 2048, dtype=torch.int32) if seqlens_k else None,
    }
    with torch.set_grad_enabled(grad):
        out = xattn.attention(q, k, v, backend="aiter-triton", **tensors, **options)
        if grad:
            out.sum().backward()


def look(arch: str, call: str, kernel: Any) -> Compiled:
    """What AMD's assembler says of a compiled kernel."""
    text = kernel.asm["amdgcn"]

    def said(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found.group(1)) if found else 0

    return Compiled(
        arch=arch,
        call=call,
        kernel=kernel.metadata.name,
        size=len(kernel.asm["hsaco"]),
        lds=kernel.metadata.shared,
        vgprs=said("vgpr_count"),
        spills=said("vgpr_spill_count") + said("sgpr_spill_count"),
        matrix=text.count("v_mfma_"),
    )


def compile_for(arch: str) -> list[Compiled]:
    """Compile every call for one arch, in a process that has compiled for no other: aiter keeps what it read of it."""
    launch, found, current = JITFunction.run, [], ""

    def warm(kernel: Any, *arguments: Any, **options: Any) -> Any:
        name = kernel.fn.__name__
        try:
            compiled = launch(kernel, *arguments, **{**options, "warmup": True})
        except Exception as error:  # the compiler's: it is what the table is for
            found.append(Compiled(arch, current, name, error=f"{type(error).__name__}: {str(error).splitlines()[0]}"))
            return None
        found.append(look(arch, current, compiled))
        return compiled

    JITFunction.run = warm
    triton.runtime.driver.set_active(_Driver(arch))
    properties = SimpleNamespace(multi_processor_count=source.COMPUTE_UNITS, gcnArchName=arch)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment, return-value]
    source.prepare(arch)
    emulated["cpu"] = ("rocm", arch)
    every: list[tuple[str, Callable[..., None], dict[str, Any]]] = [(name, perform_one, how) for name, how in calls()]
    every += [(name, perform_paged, how) for name, how in paged_calls()]
    for name, run, how in every:
        current = name
        try:
            run(**how)
        except xattn.UnsupportedError as refusal:
            ((reason, *_),) = refusal.reasons.values()
            found.append(Compiled(arch, current, "-", refused=str(reason)))
    return found


class _Driver:
    """Says that the active GPU is `arch`, and is never asked to launch."""

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", self._arch, 64)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def table(found: Sequence[Compiled]) -> Table:
    columns = ("arch", "call", "kernel", "code", "LDS", "VGPRs", "spills", "MFMA", "")
    shown = Table(*columns, title="aiter's Triton kernels as AMD's compiler makes them (bytes)")
    for each in found:
        verdict = "fits" if each.legal else each.error or f"more than {LDS[each.arch]:,} bytes of LDS"
        verdict = f"refused: {each.refused}" if each.refused else verdict
        numbers = ["-" if n is None else f"{n:,}" for n in (each.size, each.lds, each.vgprs, each.spills, each.matrix)]
        shown.add_row(each.arch, each.call, each.kernel, *numbers, verdict, style="" if each.legal else "bold red")
    return shown


def main(words: Sequence[str]) -> int:
    if len(words) == 1:
        print(msgspec.json.encode(compile_for(words[0])).decode())
        return 0
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    started = [
        subprocess.Popen([sys.executable, "-m", __spec__.name, arch], stdout=subprocess.PIPE, env=environment)
        for arch in words or LDS
    ]
    found = []
    for process in started:
        printed, _ = process.communicate()
        if process.returncode:
            return process.returncode
        found += msgspec.json.decode(printed.splitlines()[-1], type=list[Compiled])
    Console(width=None if sys.stdout.isatty() else 160).print(table(found))
    return 0 if all(each.legal for each in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
