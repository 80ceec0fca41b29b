"""One attention call for every vendor's hardware, on BSNH tensors (batch, seqlen, nheads, headdim).

    out = xattn.attention(q, k, v, causal=True)

`apply_rotary` rotates q and k in the same layout. `explain` says which backend a call gets and why, `info` what is
installed.
"""

import os

from xattn.dispatch.choice import use_backend
from xattn.errors import (
    BrokenBackendError,
    BrokenBackendWarning,
    InvalidArgumentError,
    SlowBackendWarning,
    UnknownBackendError,
    UnsupportedError,
    XattnError,
)
from xattn.explain import Explanation, explain
from xattn.info import backends, info
from xattn.ops.apply_rotary import RotaryKernel, RotaryRequest, apply_rotary
from xattn.ops.attention import AttentionKernel, AttentionRequest, attention
from xattn.ops.attention_backward import AttentionBackwardKernel, AttentionBackwardRequest, attention_backward
from xattn.ops.hstu_attention import HstuKernel, HstuRequest, hstu_attention
from xattn.ops.merge_attention import MergeKernel, MergeRequest, merge_attention
from xattn.ops.mla_attention import MlaKernel, MlaRequest, mla_attention
from xattn.ops.mqa_logits import MqaLogitsKernel, MqaLogitsRequest, mqa_logits
from xattn.ops.paged_attention import PagedKernel, PagedRequest, paged_attention
from xattn.ops.paged_mqa_logits import PagedMqaLogitsKernel, PagedMqaLogitsRequest, paged_mqa_logits
from xattn.ops.rotary_write_kv import RotaryWriteKernel, RotaryWriteRequest, rotary_write_kv
from xattn.ops.shared.output import AttentionOutput
from xattn.ops.varlen_attention import VarlenKernel, VarlenRequest, varlen_attention
from xattn.ops.varlen_attention_backward import (
    VarlenBackwardKernel,
    VarlenBackwardRequest,
    varlen_attention_backward,
)
from xattn.ops.write_kv import WriteKernel, WriteRequest, write_kv
from xattn.plan import plan
from xattn.plugin import Backend, Capabilities, Kernel, Reason, Request, TensorSpec, hookimpl
from xattn.plugin.storage import PagedBatch
from xattn.version import __version__

__all__ = [
    "AttentionBackwardKernel",
    "AttentionBackwardRequest",
    "AttentionKernel",
    "AttentionOutput",
    "AttentionRequest",
    "Backend",
    "BrokenBackendError",
    "BrokenBackendWarning",
    "Capabilities",
    "Explanation",
    "HstuKernel",
    "HstuRequest",
    "InvalidArgumentError",
    "Kernel",
    "MergeKernel",
    "MergeRequest",
    "MlaKernel",
    "MlaRequest",
    "MqaLogitsKernel",
    "MqaLogitsRequest",
    "PagedBatch",
    "PagedKernel",
    "PagedMqaLogitsKernel",
    "PagedMqaLogitsRequest",
    "PagedRequest",
    "Reason",
    "Request",
    "RotaryKernel",
    "RotaryRequest",
    "RotaryWriteKernel",
    "RotaryWriteRequest",
    "SlowBackendWarning",
    "TensorSpec",
    "UnknownBackendError",
    "UnsupportedError",
    "VarlenBackwardKernel",
    "VarlenBackwardRequest",
    "VarlenKernel",
    "VarlenRequest",
    "WriteKernel",
    "WriteRequest",
    "XattnError",
    "__version__",
    "apply_rotary",
    "attention",
    "attention_backward",
    "backends",
    "explain",
    "hookimpl",
    "hstu_attention",
    "info",
    "merge_attention",
    "mla_attention",
    "mqa_logits",
    "paged_attention",
    "paged_mqa_logits",
    "plan",
    "rotary_write_kv",
    "use_backend",
    "varlen_attention",
    "varlen_attention_backward",
    "write_kv",
]

if os.environ.get("XATTN_RECORD"):
    from xattn.tune import record

    record.start()
