"""The gradients of attention, of a share of the keys."""

from xattn.dispatch.op import Op
from xattn.ops.attention_backward.arguments import check_values, prepare
from xattn.ops.attention_backward.call import attention_backward as attention_backward
from xattn.ops.attention_backward.request import AttentionBackwardKernel as AttentionBackwardKernel
from xattn.ops.attention_backward.request import AttentionBackwardRequest as AttentionBackwardRequest

OP = Op(attention_backward, AttentionBackwardRequest, prepare, check_values)
