"""Values that only a sync can see, on an NVIDIA GPU: with check=True the errors of the CPU, and nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.every_op import illegal, samples
from plugins.sdpa.gpu.gpu_calls import needs_cuda
from plugins.sdpa.gpu.sequence_calls import no_sync
from sample import Sample, mapped
from torch import Tensor

import xattn
from xattn.dispatch.op import Op
from xattn.ops.table import OPS

pytestmark = needs_cuda

# What no shape, dtype or bound tells.
VALUES = {
    "varlen_attention": ("lengths, not their sums", "sums that decrease", "sums past the tokens", "a bound too small"),
    "varlen_attention_backward": ("sums that decrease",),
    "paged_attention": (
        "a page past the pool",
        "a page of -1",
        "a length past the table",
        "a length below 0",
        "lengths, not their sums",
        "sums that decrease",
        "sums past the tokens",
        "a bound of keys too small",
        "a bound of queries too small",
    ),
    "write_kv": ("a slot past the caches", "a slot before -1", "a slot twice"),
}
every_value = pytest.mark.parametrize(
    ("op", "fault"), [pytest.param(OPS[op], name, id=f"{op}-{name}") for op, names in VALUES.items() for name in names]
)


def on_device(sample: Sample, **named: Any) -> Sample:
    def moved(x: Any) -> Any:
        return mapped(x, Tensor.cuda)

    given = {name: moved(value) for name, value in sample.named.items()}
    return replace(sample, tensors=tuple(map(moved, sample.tensors)), named={**given, **named})


@every_value
def test_check_says_what_the_cpu_says(op: Op, fault: str) -> None:
    wrong = illegal(op)[fault]
    with pytest.raises(xattn.InvalidArgumentError) as here:
        wrong.call.of(op.function)
    call = on_device(wrong.call, check=True)
    before = [x.clone() for x in call.tensors if isinstance(x, Tensor)]
    with pytest.raises(xattn.InvalidArgumentError) as there:
        call.of(op.function)
    assert str(there.value) == str(here.value)
    assert there.value.argument == wrong.argument
    for x, y in zip((x for x in call.tensors if isinstance(x, Tensor)), before, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", [OPS[name] for name in VALUES], ids=list(VALUES))
def test_without_check_nothing_is_read(op: Op) -> None:
    call = on_device(samples(op)["plain"])
    for backend in ("reference", "auto"):
        call.of(op.function, backend=backend)
        with no_sync():
            call.of(op.function, backend=backend)


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
@pytest.mark.parametrize("op", [OPS[name] for name in VALUES], ids=list(VALUES))
def test_check_is_refused_while_a_graph_is_captured(op: Op) -> None:
    call = on_device(samples(op)["plain"], check=True)
    call.of(op.function)
    torch.cuda.synchronize()
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(xattn.InvalidArgumentError, match=r"^check: got True"):
        call.of(op.function)
