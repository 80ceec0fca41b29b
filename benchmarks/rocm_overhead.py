"""What the plans of `aiter` and `aiter-triton` cost on top of the aiter call that they make: microseconds a call.

aiter is replaced by a function that returns at once what it was made with, so that nothing is left but Python. Adapter
and direct call, which makes the same views by hand, alternate; medians over rounds are compared.

    python benchmarks/rocm_overhead.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import xattn_rocm.installation
from alternating import median_difference
from torch import Tensor

import xattn
from xattn.dispatch.selection import select
from xattn.plugin.devices import emulated

LIMIT = 2.0
ARCH = "gfx942"


class NoKernel:
    """The vendor's functions, which compute nothing."""

    def __init__(self, returned: Any) -> None:
        self._returned = returned

    def flash_attn_func(self, *arguments: Any, **named: Any) -> Any:
        return self._returned

    flash_attn_varlen_func = unified_attention = flash_attn_func


def install(returned: Any) -> NoKernel:
    kernel = NoKernel(returned)
    for name in ("aiter", "aiter.ops.triton.attention.mha", "aiter.ops.triton.attention.unified_attention"):
        module = ModuleType(name)
        for function in ("flash_attn_func", "flash_attn_varlen_func", "unified_attention"):
            setattr(module, function, getattr(kernel, function))
        sys.modules[name] = module
    xattn_rocm.installation.overridden = xattn_rocm.installation.Installation(Path(), "0.1.21", "attention")
    emulated["cpu"] = ("rocm", ARCH)
    return kernel


@dataclass(frozen=True)
class Row:
    """options and tensors: of xattn's call. direct: the vendor's call with the same views made by hand."""

    name: str
    returned: Any
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    direct: Callable[[NoKernel], Any]
    backend: str = "aiter"


def rows() -> Sequence[Row]:
    q, k = torch.zeros(2, 64, 4, 64, dtype=torch.bfloat16), torch.zeros(2, 128, 2, 64, dtype=torch.bfloat16)
    out, lse, sinks = torch.zeros_like(q), torch.zeros(2, 4, 64), torch.zeros(4)
    starts = torch.zeros(3, dtype=torch.int32)
    rest = (None, None, False)

    def varlen(kernel: NoKernel) -> Tensor:
        flat = (q.flatten(0, 1), k.flatten(0, 1), k.flatten(0, 1))
        given = (*flat, starts, starts, 64, 128, 0, 0.0, 0.125, 2.0, True, (-1, -1), *rest, False)
        returned: Tensor = kernel.flash_attn_varlen_func(*given)
        return returned.unflatten(0, (2, 64))

    def dense(kernel: NoKernel, causal: bool = True, with_lse: bool = False) -> Any:
        return kernel.flash_attn_func(q, k, k, 0.0, 0.125, causal, (-1, -1), *rest, with_lse)

    def window(kernel: NoKernel) -> Any:
        return kernel.flash_attn_func(q, k[:, 48:], k[:, 48:], 0.0, 0.125, True, (16, 0), *rest, False)

    def with_sinks(kernel: NoKernel) -> Any:
        return kernel.flash_attn_func(q, k, k, 0.0, 0.125, True, (-1, -1), *rest, False, sink_ptr=sinks)

    def triton(kernel: NoKernel) -> Any:
        return kernel.flash_attn_func(q, k, k, softmax_scale=0.125, causal=True, return_lse=False)

    def triton_lse(kernel: NoKernel) -> Any:
        return kernel.flash_attn_func(q, k, k, softmax_scale=0.125, causal=True, return_lse=True)

    def triton_window(kernel: NoKernel) -> Any:
        return kernel.flash_attn_func(
            q, k[:, 48:], k[:, 48:], softmax_scale=0.125, causal=True, return_lse=False, window_size=(16, -1)
        )

    table, lengths = torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)

    def unified(kernel: NoKernel) -> Tensor:
        """With the tables at hand, the views and the out that the call needs."""
        made = torch.empty_like(q)
        pages = (1, 128, 2, 64), (128, 128, 64, 1)
        kernel.unified_attention(
            q=q.flatten(0, 1), k=k.as_strided(*pages), v=k.as_strided(*pages), out=made.view(128, 4, 64),
            cu_seqlens_q=starts, max_seqlen_q=64, seqused_k=lengths, max_seqlen_k=128, softmax_scale=0.125, causal=True,
            window_size=(-1, -1), block_table=table, softcap=2.0, q_descale=None, k_descale=None, v_descale=None,
            alibi_slopes=None, sinks=None,
        )  # fmt: skip
        return made

    causal = {"causal": True}
    name = "aiter-triton"
    return [
        Row("aiter-triton: causal", out, causal, {}, triton, name),
        Row("aiter-triton: causal, lse", (out, lse), {**causal, "return_lse": True}, {}, triton_lse, name),
        Row("aiter-triton: window", out, {"window": (16, 0)}, {}, triton_window, name),
        Row("aiter-triton: softcap, by pages", None, {**causal, "softcap": 2.0}, {}, unified, name),
        Row("aiter: causal", out, causal, {}, dense),
        Row(
            "aiter: causal, lse",
            (out, lse),
            {**causal, "return_lse": True},
            {},
            lambda kernel: dense(kernel, with_lse=True),
        ),
        Row("aiter: causal, sinks", out, causal, {"sinks": sinks}, with_sinks),
        Row("aiter: window, keys cut off", out, {"window": (16, 0)}, {}, window),
        Row("aiter: softcap", out.flatten(0, 1), {**causal, "softcap": 2.0}, {}, varlen),
    ]


def overhead(row: Row) -> float:
    """Microseconds of a call that are the adapter's."""
    kernel = install(row.returned)
    q, k = torch.zeros(2, 64, 4, 64, dtype=torch.bfloat16), torch.zeros(2, 128, 2, 64, dtype=torch.bfloat16)
    # What is measured is the kernel's own plan, below xattn's guards.
    request = xattn.explain(q, k, k, backend=row.backend, **row.options, **row.tensors).request
    run = select(request, row.backend)[1].plan(request)
    return median_difference(lambda: run(q, k, k, **row.tensors), lambda: row.direct(kernel))


def main() -> int:
    slow = 0
    for row in rows():
        microseconds = overhead(row)
        slow += microseconds > LIMIT
        print(f"{row.name:32} {microseconds:6.2f} us a call (limit {LIMIT})")
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
