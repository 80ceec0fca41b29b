"""AWS's kernels by the names that xattn_neuron.vendor gives them, run by AWS's simulator or by the emulation."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from xattn_elsewhere.nki.emulation import isa, language, loader, modules, simulator
from xattn_elsewhere.nki.emulation.neuronxcc import isa as legacy_isa
from xattn_elsewhere.nki.emulation.neuronxcc import language as legacy_language


@functools.cache
def _current() -> ModuleType | None:
    """The real `nki`, or None where the emulation takes its name."""
    nki = simulator.real()
    if nki is None:
        modules.place("nki", {"": {"jit": language.jit}, "language": language.NAMES, "isa": isa.NAMES})
    # attention_cte warns, on stdout, of every call but the largest: its test is the wrong way round.
    os.environ.setdefault("NKILIB_LOG_LEVEL", "ERROR")
    return nki


@functools.cache
def _legacy() -> None:
    """`neuronxcc.nki`, of which NKI 0.3 has no simulator."""
    names = {"": {"jit": legacy_language.jit}, "language": legacy_language.NAMES, "isa": legacy_isa.NAMES}
    modules.place("neuronxcc.nki", names)


def runs_on(name: str) -> str:
    """For a report: what executes the NKI library's kernels ("cte"), or those before it."""
    nki = _current() if name == "cte" else None
    return "NumPy emulation of NKI" if nki is None else f"nki.simulate of nki {getattr(nki, '__version__', 'unknown')}"


@functools.cache
def nkilib(source: loader.Source, name: str) -> Callable[..., Any]:
    """A kernel of the NKI library. Raises loader.MissingKernelsError."""
    nki = _current()
    kernel: Callable[..., Any] = getattr(source.load(), name)
    return kernel if nki is None else simulator.Simulated(nki, kernel)


def attention_cte() -> Any:
    return nkilib(loader.CTE, "attention_cte")


def attention_bwd() -> Any:
    return nkilib(loader.BWD, "attention_bwd")


@functools.cache
def legacy(source: loader.Source) -> ModuleType:
    """A kernel file of the legacy namespace. Raises loader.MissingKernelsError."""
    _legacy()
    return source.load()


def flash_fwd_nxdi() -> Any:
    return legacy(loader.NXDI).flash_fwd


def flash_config_nxdi() -> Callable[..., Any]:
    config: Callable[..., Any] = legacy(loader.NXDI).FlashConfig
    return config


def flash_config_legacy() -> Callable[..., Any]:
    config: Callable[..., Any] = legacy(loader.LEGACY).FlashConfig
    return config


def flash_fwd_legacy() -> Any:
    return legacy(loader.LEGACY).flash_fwd


def flash_attn_bwd_legacy() -> Any:
    return legacy(loader.LEGACY).flash_attn_bwd
