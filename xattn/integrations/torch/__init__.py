"""F.scaled_dot_product_attention of any library, served by xattn. docs/libraries.md says when and how.

from xattn.integrations.torch import install

with install("cuda") as door:
    model(inputs)  # unmodified: a model of timm, diffusers, torchvision, your own
print(door.report())  # who was served and by what, who was left to torch, and why
"""

from __future__ import annotations

from collections.abc import Sequence

from xattn.integrations.torch.door import Door
from xattn.integrations.torch.report import Line, Report

__all__ = ["Door", "Line", "Report", "install"]


def install(*devices: str, backend: str | Sequence[str] = "auto") -> Door:
    """Serve calls of `F.scaled_dot_product_attention` by xattn, whoever makes them, until `undo`.

    devices: device types, "cpu" or "cuda" (AMD's GPUs too) say. None: the CPU and the accelerator that is here.
    backend: as of `xattn.attention`. "auto" takes a call only where xattn's choice is not torch's own attention, which
        is then called untouched. A name is an order: all that this backend can serve goes to it.

    What cannot be served exactly as asked goes to torch's own kernel, errors included: `Door.report` says how often
    and why. Calls are taken below autograd's and autocast's handling in torch's dispatcher, so it does not matter how
    a library got hold of the function. Compiled functions are compiled anew, here and by `undo`.

    Raises InvalidArgumentError for a device that torch does not know and while another door is open,
    UnknownBackendError for an unknown backend.
    """
    door = Door(devices, backend)
    door.open()
    return door
