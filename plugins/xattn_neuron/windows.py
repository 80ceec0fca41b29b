"""The windows that AWS's kernels have."""

from __future__ import annotations

from xattn import AttentionRequest, Reason
from xattn.plugin.geometry import Geometry


def window_reasons(request: AttentionRequest, kept: Geometry) -> list[Reason]:
    """Why no kernel of AWS's has the window of `kept`, the request's trimmed geometry."""
    if kept.right not in (None, 0):
        hint = "AWS's kernels have causal windows alone, (left, 0)."
        return [Reason("window", request.window, "nothing to the right", hint)]
    if kept.left is not None and kept.right is None:
        hint = "AWS's kernels have windows beside a causal mask alone: say causal=True, if that is meant."
        return [Reason("window", request.window, "causal", hint)]
    return []
