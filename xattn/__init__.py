"""One attention call for every vendor's hardware, on BSNH tensors (batch, seqlen, nheads, headdim).

    out = xattn.attention(q, k, v, causal=True)

`apply_rotary` rotates q and k in the same layout. `explain` says which backend a call of attention gets and why, `info`
what is installed.
"""

from xattn.attention import attention, plan
from xattn.backend import Backend, hookimpl
from xattn.capabilities import Capabilities
from xattn.errors import (
    BrokenBackendWarning,
    InvalidArgumentError,
    SlowBackendWarning,
    UnknownBackendError,
    UnsupportedError,
    XattnError,
)
from xattn.explain import Explanation, explain
from xattn.info import backends, info
from xattn.output import AttentionOutput
from xattn.override import use_backend
from xattn.reasons import Reason
from xattn.request import Request, TensorSpec
from xattn.rotary.call import apply_rotary
from xattn.rotary.request import RotaryRequest

__all__ = [
    "AttentionOutput",
    "Backend",
    "BrokenBackendWarning",
    "Capabilities",
    "Explanation",
    "InvalidArgumentError",
    "Reason",
    "Request",
    "RotaryRequest",
    "SlowBackendWarning",
    "TensorSpec",
    "UnknownBackendError",
    "UnsupportedError",
    "XattnError",
    "apply_rotary",
    "attention",
    "backends",
    "explain",
    "hookimpl",
    "info",
    "plan",
    "use_backend",
]
