"""The ops that there are. Nothing else outside an op's room names one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xattn.dispatch.op import Op
from xattn.dispatch.registry import declare
from xattn.errors import InvalidArgumentError
from xattn.ops import (
    apply_rotary,
    attention,
    attention_backward,
    hstu_attention,
    merge_attention,
    mla_attention,
    mqa_logits,
    paged_attention,
    paged_mqa_logits,
    rotary_write_kv,
    varlen_attention,
    varlen_attention_backward,
    write_kv,
)

# By the name of its function.
OPS: dict[str, Op] = {
    room.OP.name: room.OP
    for room in (
        attention,
        apply_rotary,
        varlen_attention,
        paged_attention,
        merge_attention,
        attention_backward,
        varlen_attention_backward,
        write_kv,
        mla_attention,
        rotary_write_kv,
        hstu_attention,
        mqa_logits,
        paged_mqa_logits,
    )
}

# What a call of `plan` or `explain` means that names no function.
DEFAULT = attention.OP

declare(op.vocabulary for op in OPS.values())


def op_of(function: Callable[..., Any]) -> Op:
    """The op that a public function is. Raises InvalidArgumentError for what is none."""
    for op in OPS.values():
        if op.function is function:
            return op
    want = f"a function of xattn: {', '.join(OPS)}"
    hint = "Pass the function itself, as xattn.attention." if isinstance(function, str) else ""
    raise InvalidArgumentError("function", getattr(function, "__name__", repr(function)), want, hint)
