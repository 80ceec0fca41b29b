"""A stand-in for AWS's NKI kernels, which run on Trainium and Inferentia alone.

The signatures, layouts and checks of attention_cte and attention_bwd of the NKI library, of
neuronx-distributed-inference's flash_fwd and of neuronxcc's flash_fwd and flash_attn_bwd, as their sources have them,
and what these compute, where that is wrong as well. The numbers are the suite's own: only what is wrong about them is
AWS's, coarse roundings among it. What a kernel leaves unwritten is NaN.

`xattn_elsewhere.nki.standin:cte` is an executor for the kernels of the NKI library, `legacy` for neuronxcc's and
`nxdi` for neuronx-distributed-inference's. To name one is to install the stand-in for the rest of the process, in place
of AWS's packages on a trn2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xattn_neuron.installation
import xattn_neuron.vendor
from xattn_neuron.installation import Installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.executor import Elsewhere
from xattn_elsewhere.nki.standin import flash_neuronxcc, flash_nxdi
from xattn_elsewhere.nki.standin.nkilib_bwd import attention_bwd
from xattn_elsewhere.nki.standin.nkilib_cte import attention_cte

# The SDKs 2.29 and 2.28, the last one with the legacy namespace on every machine.
_INSTALLED = {
    "cte": Installation(nki="0.3.0", neuronx_cc="2.24.0", nkilib="2.29.0", platform="trn2", lnc=2),
    "legacy": Installation(nki="0.2.0", neuronx_cc="2.23.0", platform="trn2", lnc=1),
    "nxdi": Installation(nki="0.2.0", nxdi="0.9.0", platform="trn2", lnc=1, legacy_attention=False),
}
_KERNELS: dict[str, dict[str, Callable[..., Any]]] = {
    "cte": {"attention_cte": attention_cte, "attention_bwd": attention_bwd},
    "legacy": {
        "flash_fwd_legacy": flash_neuronxcc.flash_fwd,
        "flash_config_legacy": flash_neuronxcc.FlashConfig,
        "flash_attn_bwd_legacy": flash_neuronxcc.flash_attn_bwd,
    },
    "nxdi": {"flash_fwd_nxdi": flash_nxdi.flash_fwd, "flash_config_nxdi": flash_nxdi.FlashConfig},
}


def install(name: str) -> None:
    """Take the place of AWS's packages in this process, and make xattn take CPU tensors for those of a Trainium."""
    xattn_neuron.installation.overridden = _INSTALLED[name]
    xattn_neuron.vendor.overridden.clear()
    xattn_neuron.vendor.overridden.update(_KERNELS[name])
    emulated["cpu"] = ("neuron", "trn2")


def __getattr__(name: str) -> Elsewhere:
    if name not in _KERNELS:
        raise AttributeError(f"no stand-in {name!r}: {', '.join(_KERNELS)}")
    install(name)
    return Elsewhere("stand-in")
