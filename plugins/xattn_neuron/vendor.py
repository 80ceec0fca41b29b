"""The one place that imports AWS's modules, when a call needs them: some of them look for a device as they load.

Each function returns a kernel with AWS's signature, on torch tensors: `kernel[grid](...)` or `kernel(...)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from xattn import Reason
from xattn.errors import add_note
from xattn_neuron.installation import installation

Kernel = Callable[..., Any]

# A stand-in or an emulation sets it, in its own worker process: the name of a function below -> the kernel.
overridden: dict[str, Kernel] = {}

_MODULES = {
    "attention_cte": ("nkilib.core.attention.attention_cte", "attention_cte"),
    "attention_bwd": ("nkilib.core.attention.attention_bwd", "attention_bwd"),
    "flash_fwd_nxdi": ("neuronx_distributed_inference.modules.sliding_window.attention", "flash_fwd"),
    "flash_fwd_legacy": ("neuronxcc.nki.kernels.attention", "flash_fwd"),
    "flash_attn_bwd_legacy": ("neuronxcc.nki.kernels.attention", "flash_attn_bwd"),
    "flash_config_nxdi": ("neuronx_distributed_inference.modules.sliding_window.attention", "FlashConfig"),
    "flash_config_legacy": ("neuronxcc.nki.kernels.attention", "FlashConfig"),
}


def attention_cte() -> Kernel:
    """The NKI library's forward."""
    return _kernel("attention_cte")


def attention_bwd() -> Kernel:
    """The NKI library's backward."""
    return _kernel("attention_bwd")


def flash_fwd_nxdi() -> Kernel:
    """The forward of neuronx-distributed-inference's sliding-window module."""
    return _kernel("flash_fwd_nxdi")


def flash_fwd_legacy() -> Kernel:
    """The forward that neuronx-cc brought before NKI 0.4.0."""
    return _kernel("flash_fwd_legacy")


def flash_attn_bwd_legacy() -> Kernel:
    """The backward of the same module."""
    return _kernel("flash_attn_bwd_legacy")


def flash_config_nxdi() -> Kernel:
    """The class of flash_fwd_nxdi's argument `config`."""
    return _kernel("flash_config_nxdi")


def flash_config_legacy() -> Kernel:
    """The class of flash_fwd_legacy's argument `config`."""
    return _kernel("flash_config_legacy")


def _kernel(name: str) -> Kernel:
    if name in overridden:
        return overridden[name]
    module, attribute = _MODULES[name]
    try:
        found: Kernel = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        add_note(error, _advice(module))
        raise
    return found


def _advice(module: str) -> str:
    installed = installation()
    if isinstance(installed, Reason):
        return f"xattn: {installed}"
    return f"xattn: that was `import {module}` of {installed}. XATTN_DISABLE=neuron goes without it."
