"""Dense attention on BSNH tensors."""

from xattn.dispatch.op import Op
from xattn.ops.attention.arguments import prepare
from xattn.ops.attention.call import attention as attention
from xattn.ops.attention.request import AttentionKernel as AttentionKernel
from xattn.ops.attention.request import AttentionRequest as AttentionRequest
from xattn.ops.shared.dense import check_values

OP = Op(attention, AttentionRequest, prepare, check_values)
