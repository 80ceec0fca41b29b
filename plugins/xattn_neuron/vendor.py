"""The one place that imports AWS's modules, when a call needs them: some of them look for a device as they load.

Each function returns a kernel with AWS's signature, on torch tensors: `kernel[grid](...)` or `kernel(...)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from xattn import Reason
from xattn.plugin.notes import add_note
from xattn_neuron.installation import installation

NkiKernel = Callable[..., Any]

# A stand-in or an emulation sets it, in its own worker process: the name of a function below -> the kernel.
overridden: dict[str, NkiKernel] = {}

_MODULES = {
    "attention_cte": "nkilib.core.attention.attention_cte",
    "attention_bwd": "nkilib.core.attention.attention_bwd",
    "flash_fwd_nxdi": "neuronx_distributed_inference.modules.sliding_window.attention",
    "flash_fwd_legacy": "neuronxcc.nki.kernels.attention",
    "flash_attn_bwd_legacy": "neuronxcc.nki.kernels.attention",
    "flash_config_nxdi": "neuronx_distributed_inference.modules.sliding_window.attention",
    "flash_config_legacy": "neuronxcc.nki.kernels.attention",
}


def attention_cte() -> NkiKernel:
    """The NKI library's forward."""
    return _kernel("attention_cte", "attention_cte")


def attention_bwd() -> NkiKernel:
    """The NKI library's backward."""
    return _kernel("attention_bwd", "attention_bwd")


def flash_fwd_nxdi() -> NkiKernel:
    """The forward of neuronx-distributed-inference's sliding-window module."""
    return _kernel("flash_fwd_nxdi", "flash_fwd")


def flash_fwd_legacy() -> NkiKernel:
    """The forward that neuronx-cc brought before NKI 0.4.0."""
    return _kernel("flash_fwd_legacy", "flash_fwd")


def flash_attn_bwd_legacy() -> NkiKernel:
    """The backward of the same module."""
    return _kernel("flash_attn_bwd_legacy", "flash_attn_bwd")


def flash_config_nxdi() -> Callable[..., Any]:
    """The class of flash_fwd_nxdi's argument `config`."""
    return _kernel("flash_config_nxdi", "FlashConfig")


def flash_config_legacy() -> Callable[..., Any]:
    """The class of flash_fwd_legacy's argument `config`."""
    return _kernel("flash_config_legacy", "FlashConfig")


def _kernel(name: str, attribute: str) -> NkiKernel:
    found: NkiKernel = overridden[name] if name in overridden else _attribute(name, attribute)
    return found


def _attribute(name: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(_MODULES[name]), attribute)
    except Exception as error:
        add_note(error, _advice(_MODULES[name]))
        raise


def _advice(module: str) -> str:
    installed = installation()
    if isinstance(installed, Reason):
        return f"xattn: {installed}"
    return f"xattn: that was `import {module}` of {installed}. XATTN_DISABLE=neuron goes without it."
