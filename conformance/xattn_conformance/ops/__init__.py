"""The ops of the contract. A new op is a package here and a line in OPS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn_conformance.ops.runnable import RunnableOp

    # By the name that its function has in xattn.
    OPS: dict[str, RunnableOp[Any]]


def __getattr__(name: str) -> Any:
    # Filled at the first look: the packages of the ops import this one.
    if name != "OPS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xattn_conformance.ops.attention.runnable import RunnableAttention

    globals()["OPS"] = {"attention": RunnableAttention()}
    return globals()["OPS"]
