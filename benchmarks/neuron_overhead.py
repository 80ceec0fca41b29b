"""What the Neuron backends' plans cost on top of the kernel call that they make: microseconds a call.

The kernels are replaced by functions that return at once what they were made with, so that nothing is left but Python
and the layouts. Adapter and direct call, which lays out the tensors by hand, alternate; medians over rounds are
compared. Tensors have their heads first in memory, as a model's projections often leave them, so that q, k and v are
views in most rows, as far as a kernel's layout lets them.

    python benchmarks/neuron_overhead.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xattn_neuron.installation
from alternating import median_difference
from torch import Tensor
from xattn_neuron import vendor
from xattn_neuron.installation import Installation

import xattn
from xattn.dispatch.selection import select
from xattn.plugin.devices import emulated

LIMIT = 3.0


class NoKernel:
    """Each of AWS's kernels, launched over any grid, computing nothing."""

    def __init__(self, returned: Any) -> None:
        self._returned = returned

    def __getitem__(self, grid: Any) -> NoKernel:
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._returned


class Config:
    """As FlashConfig."""

    def __init__(self, seq_tile_size: int, training: bool = True) -> None:
        self.seq_tile_size, self.training = seq_tile_size, training


def install(returned: Any) -> NoKernel:
    kernel = NoKernel(returned)
    for name in ("attention_cte", "flash_fwd_legacy"):
        vendor.overridden[name] = kernel
    vendor.overridden["flash_config_legacy"] = Config
    xattn_neuron.installation.overridden = Installation(
        nki="0.3.0", neuronx_cc="2.24.5133.0", nkilib="2.24.5133.0", torch_neuronx="2.9.0.2.13", platform="trn2", lnc=2
    )
    emulated["cpu"] = ("neuron", "trn2")
    return kernel


@dataclass(frozen=True)
class Row:
    """options and tensors: of xattn's call. direct: the vendor's call with the same layouts made by hand."""

    name: str
    backend: str
    returned: Any
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    direct: Callable[[NoKernel], Any]


def heads_first(batch: int, heads: int, seqlen: int, headdim: int) -> Tensor:
    """BSNH, stored as (batch, heads, seqlen, headdim)."""
    return torch.zeros(batch, heads, seqlen, headdim, dtype=torch.bfloat16).transpose(1, 2)


# Small, so that copies that neither side can avoid do not drown the difference.
Q, K = heads_first(1, 2, 128, 16), heads_first(1, 1, 512, 16)


def fold(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().flatten(0, 1)


def rows() -> Sequence[Row]:
    out, sinks, statistic = fold(Q), torch.zeros(2), torch.ones(2, 128, 1)
    used = torch.zeros(1, dtype=torch.int32)
    flags: dict[str, Any] = {"tp_q": True, "tp_k": True, "tp_out": False}

    def cte(kernel: NoKernel, q: Tensor | None = None, **named: Any) -> Tensor:
        q = fold(Q) if q is None else q
        made: Tensor = kernel[2](q, fold(K), fold(K), scale=0.25, **flags, **named)
        return made.view(1, 2, 128, 16).transpose(1, 2).contiguous()

    def prefix(kernel: NoKernel) -> Tensor:
        q = Q.transpose(1, 2)
        q = torch.mul(q, 0.25, out=torch.empty(q.shape, dtype=q.dtype)).flatten(0, 1)
        prior = {"k_prior": fold(K[:, :384]), "v_prior": fold(K[:, :384]), "prior_used_len": used}
        k, v = K[:, 384:], K[:, 384:]
        made: Tensor = kernel[2](q, fold(k), fold(v), scale=1.0, causal_mask=True, **flags, **prior)
        return made.view(1, 2, 128, 16).transpose(1, 2).contiguous()

    def lse(kernel: NoKernel) -> tuple[Tensor, Tensor]:
        made, low, high = kernel[2](fold(Q), fold(K), fold(K), scale=0.25, cache_softmax=True, **flags)
        tiles = -(low + high.log()).view(1, 2, 128, 1)
        made = made.view(1, 2, 128, 16).transpose(1, 2).contiguous()
        return made, tiles.transpose(2, 3).contiguous().flatten(2)

    def with_sinks(kernel: NoKernel) -> Tensor:
        return cte(kernel, sink=sinks.float().expand(1, -1).contiguous().view(2, 1))

    def flash(kernel: NoKernel) -> Tensor:
        q, k = (x.permute(0, 2, 3, 1).contiguous() for x in (Q, K))
        v = K.transpose(1, 2).contiguous()
        named = {"softmax_scale": 0.25, "use_causal_mask": False, "sliding_window": -1, "mixed_precision": True}
        made: Tensor = kernel[1, 1](q, k, v, None, dropout_p=0.0, logit_bias=None, config=Config(512, False), **named)
        return made.transpose(1, 2).contiguous()

    returned = (out, statistic, statistic)
    return [
        Row("nki, full", "nki", out, {}, {}, cte),
        Row("nki, sinks", "nki", out, {}, {"sinks": sinks}, with_sinks),
        Row("nki, causal by prefix", "nki", out, {"causal": True}, {}, prefix),
        Row("nki, lse", "nki", returned, {"return_lse": True}, {}, lse),
        Row("nki-legacy, full", "nki-legacy", out.view(1, 2, 128, 16), {}, {}, flash),
    ]


def overhead(row: Row) -> float:
    """Microseconds of a call that are the adapter's."""
    kernel = install(row.returned)
    # What is measured is the kernel's own plan, below xattn's guards.
    request = xattn.explain(Q, K, K, backend=row.backend, **row.options, **row.tensors).request
    run = select(request, row.backend)[1].plan(request)
    return median_difference(lambda: run(Q, K, K, **row.tensors), lambda: row.direct(kernel))


def main() -> int:
    torch.set_num_threads(1)
    slow = 0
    for row in rows():
        microseconds = overhead(row)
        slow += microseconds > LIMIT
        print(f"{row.name:24} {microseconds:6.2f} us a call (limit {LIMIT})")
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
