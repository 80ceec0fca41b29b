"""The door: a kernel of ours for aten::scaled_dot_product_attention, for as long as it is open.

torch's dispatcher knows that operator as a composition of others and lets a library give it a kernel for a device. A
call then comes here whatever name it was made by, and torch's own composition stays at hand: `_torchs`.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from xattn.dispatch.choice import chosen, named
from xattn.dispatch.registry import registry
from xattn.errors import InvalidArgumentError
from xattn.integrations.torch.call import arguments
from xattn.integrations.torch.report import Outcome, Report
from xattn.integrations.torch.verdict import NO_BETTER, Verdicts
from xattn.ops.attention.call import attention

_frame = sys._getframe
_kernel_of = torch.ops.aten.scaled_dot_product_attention.default._op_dk
_COMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd

# Attention in one operator, which torch.nn takes in eval mode where nothing needs a gradient.
_FAST_PATHS = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")

# The open door. The kernel of an operator belongs to the process.
_open: Door | None = None


def _torchs(*call: Any, **options: Any) -> Tensor:
    return _kernel_of(_COMPOSED, *call, **options)  # type: ignore[no-any-return]


class Door:
    """Open from `install` to `undo`. A context manager too: leaving it is `undo`."""

    def __init__(self, devices: Sequence[str], backend: str | Sequence[str]) -> None:
        self._devices = devices or _here()
        self._keys = {device: _dispatch_key(device) for device in self._devices}
        self._backend = backend
        named(chosen(backend))  # an unknown name is an error here, not at the first call
        self._counts: defaultdict[tuple[Outcome, str], Counter[str]] = defaultdict(Counter)
        self._verdicts = Verdicts(backend)
        self._thread = threading.local()
        self._restore: list[Callable[[], None]] = []

    def open(self) -> None:
        global _open
        if _open is not None:
            raise InvalidArgumentError("install", "a second door", "one at a time", "Call undo() of the first.")
        _open = self
        library = torch.library.Library("aten", "IMPL")
        self._restore.append(library._destroy)
        with warnings.catch_warnings():
            # torch says that its own composition is no longer what a call runs, which is the purpose.
            warnings.simplefilter("ignore", UserWarning)
            for device, key in self._keys.items():
                kernel = self._choose if self._may_serve(device) else self._leaving(device)
                library.impl("scaled_dot_product_attention", kernel, key)
                library.impl("scaled_dot_product_attention", kernel, f"Autograd{key}")
        self._restore += [self._count_bypassing(name) for name in _FAST_PATHS]
        self._restore.append(_compile_anew())

    def undo(self) -> None:
        """Give torch's function back as it was. A second time it does nothing."""
        global _open
        while self._restore:
            self._restore.pop()()
            _open = None

    def report(self) -> Report:
        """Who came through so far, and what became of the calls."""
        return Report.of(self._counts)

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def _may_serve(self, device: str) -> bool:
        """Whether any call on a device could go elsewhere than to torch."""
        if self._backend != "auto":
            return True
        kernels = [
            kernel
            for name, entry in registry().entries.items()
            if name not in NO_BETTER and entry.disabled_by is None
            for kernel in entry.kernels("attention")
        ]
        return any(block.device == device for kernel in kernels for block in kernel.capabilities)

    def _count(self, outcome: Outcome, why: str) -> None:
        # The frame below the kernel is the Python that called torch's function: its C++ leaves none.
        self._counts[outcome, why][_frame(2).f_globals.get("__name__", "?")] += 1

    def _leaving(self, device: str) -> Callable[..., Tensor]:
        """The kernel for a device on which xattn has nothing but torch's own attention."""
        calls = self._counts["torch's", f"xattn has no other kernel for {device}"]

        # `_count` and `_torchs` spelt out, for speed: this is all that the door costs there.
        def leave(*call: Any, **options: Any) -> Tensor:
            calls[_frame(1).f_globals.get("__name__", "?")] += 1
            return _kernel_of(_COMPOSED, *call, **options)  # type: ignore[no-any-return]

        return leave

    def _choose(self, *call: Any, **options: Any) -> Tensor:
        """The kernel for any other device."""
        # What xattn has chosen may itself call torch's function.
        if getattr(self._thread, "serves", False):
            return _torchs(*call, **options)
        outcome, why = self._verdicts.of(*call, **options)
        self._count(outcome, why)
        if outcome != "served":
            return _torchs(*call, **options)
        tensors, named = arguments(*call, **options)
        self._thread.serves = True
        try:
            out: Tensor = attention(*tensors, backend=self._backend, **named).transpose(1, 2)
        finally:
            self._thread.serves = False
        # torch's kernels for the CPU keep q's order in memory, and code written there may view the result by it.
        q = call[0]
        return out.contiguous() if q.device.type == "cpu" and q.is_contiguous() else out

    def _count_bypassing(self, name: str) -> Callable[[], None]:
        """Count the calls of one of torch's fast paths; the result undoes it."""
        fast_path = getattr(torch, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self._count("bypassed", f"torch.{name}, the fast path of torch.nn in eval mode")
            return fast_path(*arguments, **named)

        setattr(torch, name, counted)
        return lambda: setattr(torch, name, fast_path)


def _here() -> list[str]:
    accelerator = torch.accelerator.current_accelerator()
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


def _dispatch_key(device: str) -> str:
    """torch's name for the kernels of a device type."""
    try:
        return torch._C._dispatch_key_for_device(device)
    except RuntimeError as error:
        raise InvalidArgumentError("devices", repr(device), 'a device type, "cpu" or "cuda" say') from error


def _compile_anew() -> Callable[[], None]:
    """Forget what was compiled without the door; the result forgets what was compiled with it.

    Nothing in a graph that calls torch's function shows which kernel it would get, so neither torch.compile's guards
    nor the keys of its caches on disk know of the door.
    """
    config = torch.compiler.config
    tag = config.cache_key_tag
    config.cache_key_tag = f"{tag}+xattn.integrations.torch"
    torch.compiler.reset()

    def restore() -> None:
        config.cache_key_tag = tag
        torch.compiler.reset()

    return restore
