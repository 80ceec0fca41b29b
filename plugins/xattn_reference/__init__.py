"""The `reference` plugin: the contract in plain PyTorch, on any device, holding the whole score matrix."""

from __future__ import annotations

import xattn
from xattn_reference.backend import ReferenceBackend


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [ReferenceBackend()]
