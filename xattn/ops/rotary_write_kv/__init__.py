"""Rotary position embedding of new queries and keys, and the keys into the slots of a paged cache."""

from xattn.dispatch.op import Op
from xattn.ops.rotary_write_kv.arguments import check_values, prepare
from xattn.ops.rotary_write_kv.call import rotary_write_kv as rotary_write_kv
from xattn.ops.rotary_write_kv.request import RotaryWriteKernel as RotaryWriteKernel
from xattn.ops.rotary_write_kv.request import RotaryWriteRequest as RotaryWriteRequest

OP = Op(
    rotary_write_kv,
    RotaryWriteRequest,
    prepare,
    check_values,
    writes=frozenset({"k_cache", "v_cache", "k_scale", "v_scale"}),
)
