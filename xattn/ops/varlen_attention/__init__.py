"""Attention over packed sequences."""

from xattn.dispatch.op import Op
from xattn.ops.varlen_attention.arguments import prepare
from xattn.ops.varlen_attention.call import varlen_attention as varlen_attention
from xattn.ops.varlen_attention.held import held_by_bounds
from xattn.ops.varlen_attention.request import VarlenKernel as VarlenKernel
from xattn.ops.varlen_attention.request import VarlenRequest as VarlenRequest

OP = Op(varlen_attention, VarlenRequest, prepare, held=held_by_bounds)
