"""The ops that the suite knows."""

from __future__ import annotations

from typing import Any

from xattn_conformance.ops.apply_rotary.op import RotaryOp
from xattn_conformance.ops.attention.op import AttentionOp
from xattn_conformance.ops.attention_backward.op import AttentionBackwardOp
from xattn_conformance.ops.base import Op
from xattn_conformance.ops.hstu_attention.op import HstuOp
from xattn_conformance.ops.merge_attention.op import MergeOp
from xattn_conformance.ops.mla_attention.op import MlaAttentionOp
from xattn_conformance.ops.mqa_logits.op import MqaLogitsOp
from xattn_conformance.ops.paged_attention.op import PagedAttentionOp
from xattn_conformance.ops.paged_mqa_logits.op import PagedMqaLogitsOp
from xattn_conformance.ops.rotary_write_kv.op import RotaryWriteOp
from xattn_conformance.ops.varlen_attention.op import VarlenAttentionOp
from xattn_conformance.ops.varlen_attention_backward.op import VarlenAttentionBackwardOp
from xattn_conformance.ops.write_kv.op import WriteOp

# By the name that its function has in xattn.
OPS: dict[str, Op[Any]] = {
    op.name: op
    for op in (
        AttentionOp(),
        RotaryOp(),
        VarlenAttentionOp(),
        PagedAttentionOp(),
        MergeOp(),
        AttentionBackwardOp(),
        VarlenAttentionBackwardOp(),
        WriteOp(),
        MlaAttentionOp(),
        RotaryWriteOp(),
        HstuOp(),
        MqaLogitsOp(),
        PagedMqaLogitsOp(),
    )
}
