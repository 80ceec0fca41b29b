"""The `flex` backend."""

from __future__ import annotations

from xattn import Backend
from xattn_flex.attention.kernel import FlexAttention


class FlexBackend(Backend):
    name = "flex"
    api_version = 1
    kernels = (FlexAttention(),)
