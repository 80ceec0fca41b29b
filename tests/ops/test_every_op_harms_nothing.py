"""Over the table of ops: threads at once, inputs that stay as they are, errors that can be pickled."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from ops.every_op import Counting, every_op, every_sample, samples
from sample import equal, flat

import xattn
from xattn.dispatch.op import Op

Mine = Callable[..., Counting]


@every_op
def test_threads_get_what_one_gets(op: Op, mine: Mine) -> None:
    mine(op)
    calls = [sample for name, sample in samples(op).items() if "dropout" not in name]
    want = [sample.of(op.function, backend="reference") for sample in calls]
    mine(op)  # nothing is planned yet
    start, wrong = threading.Barrier(4), []

    def work(first: int) -> None:
        start.wait(30)
        for turn in range(3 * len(calls)):
            i = (first + turn) % len(calls)
            if not equal(calls[i].of(op.function), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@every_sample
def test_inputs_stay_as_they_are(op: Op, name: str, mine: Mine) -> None:
    mine(op)
    sample = samples(op)[name].requiring_grad()
    given = {**dict(zip(inspect.signature(op.function).parameters, sample.tensors, strict=False)), **sample.named}
    kept = [(x, x._version, x.detach().clone()) for key in given if key not in op.writes for x in flat(given[key])]
    outputs = [tensor for tensor in flat(sample.of(op.function)) if tensor.requires_grad]
    leaves = [x for x, _, _ in kept if x.requires_grad]
    if leaves:
        with contextlib.suppress(NotImplementedError):  # of a gradient that has none itself
            torch.autograd.grad(outputs, leaves, list(map(torch.ones_like, outputs)), allow_unused=True)
    assert all(x._version == version and equal(x.detach(), copy) for x, version, copy in kept)


@every_op
def test_errors_are_values(op: Op, mine: Mine) -> None:
    mine(op)
    for backend in ("other", "nobody", 3):
        with pytest.raises(xattn.XattnError) as caught:
            samples(op)["plain"].of(op.function, backend=backend)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), str(again)) == (type(caught.value), str(caught.value))
        if isinstance(caught.value, xattn.UnsupportedError):
            assert (again.request, again.reasons) == (caught.value.request, caught.value.reasons)
