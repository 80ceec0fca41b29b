"""HSTU: packed sequences, weighed by SiLU and not by a softmax."""

from xattn.dispatch.op import Op
from xattn.ops.hstu_attention.arguments import check_values, prepare
from xattn.ops.hstu_attention.call import hstu_attention as hstu_attention
from xattn.ops.hstu_attention.request import HstuKernel as HstuKernel
from xattn.ops.hstu_attention.request import HstuRequest as HstuRequest

OP = Op(hstu_attention, HstuRequest, prepare, check_values)
