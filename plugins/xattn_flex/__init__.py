"""The `flex` plugin: torch's flex_attention behind the contract, which compiles a kernel for each kind of call."""

from __future__ import annotations

import xattn
from xattn_flex.backend import FlexBackend


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [FlexBackend()]
