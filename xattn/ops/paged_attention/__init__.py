"""Attention of packed queries over keys and values in pages."""

from xattn.dispatch.op import Op
from xattn.ops.paged_attention.arguments import prepare
from xattn.ops.paged_attention.call import paged_attention as paged_attention
from xattn.ops.paged_attention.request import PagedKernel as PagedKernel
from xattn.ops.paged_attention.request import PagedRequest as PagedRequest
from xattn.ops.paged_attention.values import check_values

OP = Op(paged_attention, PagedRequest, prepare, check_values)
