"""The gradients of attention over packed sequences, of a share of the keys."""

from xattn.dispatch.op import Op
from xattn.ops.varlen_attention_backward.arguments import check_values, prepare
from xattn.ops.varlen_attention_backward.call import varlen_attention_backward as varlen_attention_backward
from xattn.ops.varlen_attention_backward.request import VarlenBackwardKernel as VarlenBackwardKernel
from xattn.ops.varlen_attention_backward.request import VarlenBackwardRequest as VarlenBackwardRequest

OP = Op(varlen_attention_backward, VarlenBackwardRequest, prepare, check_values)
