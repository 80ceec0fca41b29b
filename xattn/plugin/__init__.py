"""What a vendor writes against: a backend, its kernels, and what these see of a call. Knows no op, and nothing of how a
call finds its kernel.

docs/write-a-backend.md walks through a whole plugin.
"""

from xattn.plugin.backend import API_VERSION, ENTRY_POINT_GROUP, Backend, Kernel, Plan, hookimpl
from xattn.plugin.capabilities import Bound, Capabilities
from xattn.plugin.reasons import Reason
from xattn.plugin.request import Request, TensorSpec, dtype_name

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "Backend",
    "Bound",
    "Capabilities",
    "Kernel",
    "Plan",
    "Reason",
    "Request",
    "TensorSpec",
    "dtype_name",
    "hookimpl",
]
