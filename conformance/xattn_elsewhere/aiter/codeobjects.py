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
from collections.abc import Sequence
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


def perform_one(how: dict[str, Any]) -> None:
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
    for name, how in calls():
        current = name
        try:
            perform_one(how)
        except xattn.UnsupportedError as refusal:
            (reason, *_) = refusal.reasons["aiter-triton"]
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
