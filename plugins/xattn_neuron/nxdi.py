"""For models that neuronx-distributed-inference traces: attention as a module, and an executor for the conformance
suite.

    from neuronx_distributed_inference.utils.testing import build_module, validate_accuracy
    from xattn_neuron.nxdi import AttentionModule

    settings = {"nheads": 32, "nheads_k": 8, "headdim": 128, "causal": True}
    model = build_module(AttentionModule, [(q, k, v)], module_init_kwargs=settings, logical_nc_config=2)
    validate_accuracy(model, [(q, k, v)], cpu_callable=...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import xattn
from xattn import AttentionOutput, InvalidArgumentError, Reason
from xattn.plugin.devices import emulated, taken_for
from xattn_neuron import installation

# What a module's tensors are on while NxDI traces it. The name says nothing of Neuron, and a TPU has it too.
_TRACED = "xla"


class AttentionModule(torch.nn.Module):
    """`xattn.attention` as a module without weights.

    nheads, headdim:  of q. nheads_k: of k and v; None is nheads.
    causal, window, align, scale, return_lse: as in `xattn.attention`.
    backend:          "nki" or "nki-legacy".
    """

    def __init__(
        self,
        nheads: int,
        headdim: int,
        nheads_k: int | None = None,
        causal: bool = False,
        window: tuple[int | None, int | None] | None = None,
        align: str = "bottom_right",
        scale: float | None = None,
        return_lse: bool = False,
        backend: str = "nki",
    ) -> None:
        super().__init__()
        self.nheads, self.headdim = nheads, headdim
        self.nheads_k = nheads if nheads_k is None else nheads_k
        self.options: dict[str, Any] = {"causal": causal, "window": window, "align": align, "scale": scale}
        self.options |= {"return_lse": return_lse, "backend": backend}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """q: (batch, seqlen_q, nheads, headdim) or flat, (batch, seqlen_q, nheads * headdim); k and v likewise with
        nheads_k. sinks: (nheads,).

        Returns out in the form of q, with return_lse as (out, lse). Raises what `xattn.attention` raises.
        """
        flat = q.dim() == 3
        q = self._bsnh("q", q, self.nheads)
        k, v = (self._bsnh(name, x, self.nheads_k) for name, x in (("k", k), ("v", v)))
        returned = _attend(q, k, v, sinks=sinks, **self.options)
        bsnh, lse = returned if isinstance(returned, AttentionOutput) else (returned, None)
        out = bsnh.flatten(2) if flat else bsnh
        return out if lse is None else (out, lse)

    def _bsnh(self, name: str, x: Tensor, nheads: int) -> Tensor:
        width = nheads * self.headdim
        if x.dim() == 3 and x.shape[2] == width:
            x = x.unflatten(2, (nheads, self.headdim))
        elif x.dim() != 4 or tuple(x.shape[2:]) != (nheads, self.headdim):
            want = f"(batch, seqlen, {nheads}, {self.headdim}) or (batch, seqlen, {width})"
            raise InvalidArgumentError(name, f"shape {tuple(x.shape)}", want)
        return x


def _attend(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor | AttentionOutput:
    """`xattn.attention`, which under NxDI's tracer takes the tensors for those of a Neuron device."""
    if q.device.type != _TRACED:
        found: Tensor | AttentionOutput = xattn.attention(q, k, v, **arguments)
        return found
    found_here = installation.installation()
    platform = None if isinstance(found_here, Reason) else found_here.platform
    tensors = {"sinks": arguments.pop("sinks")} if arguments.get("sinks") is not None else {}
    with taken_for(_TRACED, "neuron", platform):
        run = xattn.plan(q, k, v, **tensors, **arguments)
        returned: Tensor | AttentionOutput = run(q, k, v, **tensors)
    return returned


class Executor:
    """Runs the suite's calls of `attention` as NxDI's own tests run a module: built for one static shape, called with
    tensors of the CPU. The suite then compares by its own tolerances, where validate_accuracy takes what it is given.

    build: NxDI's build_module. Forward only: NxDI compiles no backward.
    """

    provenance = "hardware"

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build
        # The last one alone: each holds memory of the device, and the suite calls a shape several times in a row.
        self._built: tuple[object, Any] = (None, None)

    def __call__(self, op: str, arguments: Mapping[str, Any], backend: str) -> Any:
        if op != "attention":
            return getattr(xattn, op)(**arguments, backend=backend)
        xattn.plan(
            xattn.attention, **arguments, backend=backend
        )  # raises with the backend's reasons, before anything is compiled
        named = {name: arguments.get(name) for name in ("q", "k", "v", "sinks")}
        tensors = tuple(x.detach() for x in named.values() if x is not None)
        q, k = tensors[:2]
        settings = {name: arguments[name] for name in ("causal", "window", "align", "scale") if name in arguments}
        settings |= {"nheads": q.shape[2], "nheads_k": k.shape[2], "headdim": q.shape[3], "backend": backend}
        settings["return_lse"] = return_lse = bool(arguments.get("return_lse", False))
        returned = self._model(tensors, settings)(*tensors)
        return AttentionOutput(*returned) if return_lse else returned

    def _model(self, tensors: tuple[Tensor, ...], settings: dict[str, Any]) -> Any:
        key = (tuple((x.shape, x.dtype) for x in tensors), tuple(settings.items()))
        if self._built[0] != key:
            self._built = (None, None)
            made = self._build(
                AttentionModule, [tensors], module_init_kwargs=settings, logical_nc_config=_installed().lnc
            )
            self._built = (key, made)
        return self._built[1]


def _installed() -> installation.Installation:
    found = installation.installation()
    if isinstance(found, Reason):
        raise RuntimeError(f"xattn: {found}")
    return found


def __getattr__(name: str) -> Executor:
    """`xattn_neuron.nxdi:run` is the executor: to name it is to take this process's CPU tensors for those of Neuron."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = _installed()
    from neuronx_distributed_inference.utils.testing import build_module  # type: ignore[import-not-found]

    installation.overridden = replace(found, forward_only=True)
    emulated["cpu"] = ("neuron", found.platform)
    return Executor(build_module)
