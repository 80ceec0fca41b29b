"""Multi-head latent attention, absorbed: every query head reads one latent cache."""

from xattn.dispatch.op import Op
from xattn.ops.mla_attention.arguments import prepare
from xattn.ops.mla_attention.call import mla_attention as mla_attention
from xattn.ops.mla_attention.request import MlaKernel as MlaKernel
from xattn.ops.mla_attention.request import MlaRequest as MlaRequest
from xattn.ops.mla_attention.values import check_values

OP = Op(mla_attention, MlaRequest, prepare, check_values)
