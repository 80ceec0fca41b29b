"""The band of a call as the kernel counts it."""

from __future__ import annotations

from xattn.plugin.geometry import Geometry


def counted(geometry: Geometry) -> Geometry:
    """Of all queries and the keys that some query sees, counted from the bottom right. A side that comes out negative
    is one that the kernel cannot be told."""
    part = geometry.part(0, geometry.seqlen_q, geometry.first_k, geometry.end_k)
    return part.recounted(part.seqlen_k - part.seqlen_q).opened()
