"""New keys and values into the slots of a paged cache."""

from xattn.dispatch.op import Op
from xattn.ops.shared.writes import check_values
from xattn.ops.write_kv.arguments import prepare
from xattn.ops.write_kv.call import write_kv as write_kv
from xattn.ops.write_kv.request import WriteKernel as WriteKernel
from xattn.ops.write_kv.request import WriteRequest as WriteRequest

OP = Op(write_kv, WriteRequest, prepare, check_values, writes=frozenset({"k_cache", "v_cache", "k_scale", "v_scale"}))
