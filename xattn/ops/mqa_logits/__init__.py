"""The logits by which an indexer chooses keys."""

from xattn.dispatch.op import Op
from xattn.ops.mqa_logits.arguments import check_values, prepare
from xattn.ops.mqa_logits.call import mqa_logits as mqa_logits
from xattn.ops.mqa_logits.request import MqaLogitsKernel as MqaLogitsKernel
from xattn.ops.mqa_logits.request import MqaLogitsRequest as MqaLogitsRequest

OP = Op(mqa_logits, MqaLogitsRequest, prepare, check_values)
