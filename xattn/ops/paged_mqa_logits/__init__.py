"""The logits by which an indexer chooses keys, of keys in pages."""

from xattn.dispatch.op import Op
from xattn.ops.paged_mqa_logits.arguments import check_values, prepare
from xattn.ops.paged_mqa_logits.call import paged_mqa_logits as paged_mqa_logits
from xattn.ops.paged_mqa_logits.request import PagedMqaLogitsKernel as PagedMqaLogitsKernel
from xattn.ops.paged_mqa_logits.request import PagedMqaLogitsRequest as PagedMqaLogitsRequest

OP = Op(paged_mqa_logits, PagedMqaLogitsRequest, prepare, check_values)
