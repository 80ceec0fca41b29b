"""Exact combination of attention over disjoint sets of keys."""

from xattn.dispatch.op import Op
from xattn.ops.merge_attention.arguments import prepare
from xattn.ops.merge_attention.call import merge_attention as merge_attention
from xattn.ops.merge_attention.request import MergeKernel as MergeKernel
from xattn.ops.merge_attention.request import MergeRequest as MergeRequest

OP = Op(merge_attention, MergeRequest, prepare)
