"""A held plan of `varlen_attention` spelt out: of q, k, v, both cu_seqlens and both bounds, without anything else."""

from __future__ import annotations

from typing import Any

from torch.compiler import is_dynamo_compiling

from xattn.dispatch.held import INT_MAX, INT_MIN, Held
from xattn.plugin.backend import Plan

_MISSING: Any = object()


def held_by_bounds(held: Held) -> Plan | None:
    """The function that a caller keeps, where nothing but the bounds comes by name."""
    if held.given.keys() != {"max_seqlen_q", "max_seqlen_k"}:
        return None

    def run_plan(
        q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, /, *,
        max_seqlen_q: Any = _MISSING, max_seqlen_k: Any = _MISSING, **unknown: Any,
    ) -> Any:  # fmt: skip
        if is_dynamo_compiling():
            bounds = _given(max_seqlen_q, max_seqlen_k, unknown)
            return held.traced(q, k, v, cu_seqlens_q, cu_seqlens_k, **bounds)
        if (
            unknown
            or type(max_seqlen_q) is not int
            or type(max_seqlen_k) is not int
            or not INT_MIN <= max_seqlen_q <= INT_MAX
            or not INT_MIN <= max_seqlen_k <= INT_MAX
        ):
            held.check(_given(max_seqlen_q, max_seqlen_k, unknown))
        try:
            return held.run(
                q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k
            )  # fmt: skip
        except Exception as error:
            held.planned.annotate(error)
            raise

    return run_plan


def _given(max_seqlen_q: Any, max_seqlen_k: Any, unknown: dict[str, Any]) -> dict[str, Any]:
    bounds = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
    return {name: value for name, value in bounds.items() if value is not _MISSING} | unknown
