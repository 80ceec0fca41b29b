"""One attention call for every vendor's hardware, on BSNH tensors (batch, seqlen, nheads, headdim).

    out = xattn.attention(q, k, v, causal=True)

`apply_rotary` rotates q and k in the same layout. `explain` says which backend a call gets and why, `info` what is
installed.
"""

from xattn.cache import PagedKVCache, StaticKVCache
from xattn.dispatch.choice import use_backend
from xattn.errors import (
    BrokenBackendError,
    BrokenBackendWarning,
    CacheFullError,
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
from xattn.ops.merge_attention import MergeKernel, MergeRequest, merge_attention
from xattn.ops.paged_attention import PagedKernel, PagedRequest, paged_attention
from xattn.ops.shared.output import AttentionOutput
from xattn.ops.varlen_attention import VarlenKernel, VarlenRequest, varlen_attention
from xattn.ops.write_kv import WriteKernel, WriteRequest, write_kv
from xattn.plan import plan
from xattn.plugin import Backend, Capabilities, Kernel, Reason, Request, TensorSpec, hookimpl
from xattn.plugin.storage import PagedBatch
from xattn.version import __version__

__all__ = [
    "AttentionKernel",
    "AttentionOutput",
    "AttentionRequest",
    "Backend",
    "BrokenBackendError",
    "BrokenBackendWarning",
    "CacheFullError",
    "Capabilities",
    "Explanation",
    "InvalidArgumentError",
    "Kernel",
    "MergeKernel",
    "MergeRequest",
    "PagedBatch",
    "PagedKVCache",
    "PagedKernel",
    "PagedRequest",
    "Reason",
    "Request",
    "RotaryKernel",
    "RotaryRequest",
    "SlowBackendWarning",
    "StaticKVCache",
    "TensorSpec",
    "UnknownBackendError",
    "UnsupportedError",
    "VarlenKernel",
    "VarlenRequest",
    "WriteKernel",
    "WriteRequest",
    "XattnError",
    "__version__",
    "apply_rotary",
    "attention",
    "backends",
    "explain",
    "hookimpl",
    "info",
    "merge_attention",
    "paged_attention",
    "plan",
    "use_backend",
    "varlen_attention",
    "write_kv",
]
