"""AWS's own attention kernels on a CPU: their unmodified files, executed by AWS's simulator where the real `nki` is
installed, and else by an implementation in NumPy of as much of NKI as they use.

Where the files are is said by the environment: XATTN_NKILIB_PATH, a checkout of nki-library (or an installed `nkilib`);
XATTN_NXDI_PATH, a checkout of neuronx-distributed-inference; XATTN_NEURONXCC_ATTENTION, the file attention.py of
neuronxcc.nki.kernels.

`xattn_elsewhere.nki.emulation:cte` is an executor for the kernels of the NKI library, `legacy` for neuronx-cc's and
`nxdi` for neuronx-distributed-inference's. To name one is to take the place of AWS's packages on a trn2 for the rest of
the process. What the emulation does not know: the capacity of SBUF for tiles without an address, the engines' own
approximations of exp and log, their order of summation, random numbers, and whether a kernel compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import xattn_neuron.installation
import xattn_neuron.vendor
from xattn_neuron.installation import Installation

from xattn.plugin.devices import emulated
from xattn_elsewhere.executor import Elsewhere
from xattn_elsewhere.nki.emulation import kernels, loader

# nki: 0.3.0 of SDK 2.29, which the kernels' sources were read at, and 0.2.0 before it. A grid of the legacy kernels is
# for one core.
_INSTALLED = {
    "cte": Installation(nki="0.3.0", neuronx_cc="2.24.0", nkilib="2.29.0", platform="trn2", lnc=2),
    "legacy": Installation(nki="0.2.0", neuronx_cc="2.23.0", platform="trn2", lnc=1),
    "nxdi": Installation(nki="0.2.0", nxdi="0.9.0", platform="trn2", lnc=1, legacy_attention=False),
}
_KERNELS: dict[str, tuple[Callable[[], Callable[..., Any]], ...]] = {
    "cte": (kernels.attention_cte, kernels.attention_bwd),
    "legacy": (kernels.flash_fwd_legacy, kernels.flash_config_legacy, kernels.flash_attn_bwd_legacy),
    "nxdi": (kernels.flash_fwd_nxdi, kernels.flash_config_nxdi),
}


def install(name: str) -> dict[str, str]:
    """Take the place of AWS's packages in this process, and make xattn take CPU tensors for those of a Trainium.

    Returns what a report says of it. Raises loader.MissingKernelsError.
    """
    found = {each.__name__: each() for each in _KERNELS[name]}
    xattn_neuron.installation.overridden = _INSTALLED[name]
    xattn_neuron.vendor.overridden.clear()
    xattn_neuron.vendor.overridden.update(found)
    emulated["cpu"] = ("neuron", "trn2")
    return {"runs on": kernels.runs_on(name), **dict(loader.digest(each) for each in found.values())}


def __getattr__(name: str) -> Elsewhere:
    if name not in _KERNELS:
        raise AttributeError(f"no kernels {name!r} to emulate: {', '.join(_KERNELS)}")
    return Elsewhere("vendor code elsewhere", install(name))
