"""Rotary position embedding of q and k."""

from xattn.dispatch.op import Op
from xattn.ops.apply_rotary.arguments import prepare
from xattn.ops.apply_rotary.call import apply_rotary as apply_rotary
from xattn.ops.apply_rotary.request import RotaryKernel as RotaryKernel
from xattn.ops.apply_rotary.request import RotaryRequest as RotaryRequest

OP = Op(apply_rotary, RotaryRequest, prepare)
