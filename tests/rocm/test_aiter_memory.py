"""The `aiter` backend hands tensors on as they are: no copies, no repeated heads, no matrix of scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rocm.aiter_recorder import Install, a_clean_process, a_vendor, call, qkv  # noqa: F401
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import xattn


class Allocations(TorchDispatchMode):
    """The largest tensor that an operator made anew."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        if isinstance(returned, Tensor) and not func.is_view:
            self.largest = max(self.largest, returned.numel())
        return returned


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (16, 0)}, {"softcap": 2.0}])
def test_tensors_go_in_as_they_are(vendor: Install, options: dict[str, Any]) -> None:
    made, (q, k, v) = vendor(), qkv(seqlen_q=512, seqlen_k=512, headdim=64)
    call(q, k, v, **options)
    assert [x.data_ptr() for x in made.given[:3]] == [x.data_ptr() for x in (q, k, v)]
    assert made.given[1].shape[-2] == 2


@pytest.mark.parametrize(
    "options", [{"causal": True}, {"window": (16, 0)}, {"softcap": 2.0}, {"sinks": torch.zeros(4)}]
)
def test_nothing_is_allocated_but_the_output(vendor: Install, options: dict[str, Any]) -> None:
    vendor()
    q, k, v = qkv(seqlen_q=256, seqlen_k=256, headdim=64)
    run = xattn.plan(q, k, v, backend="aiter", **options)
    given = {name: value for name, value in options.items() if isinstance(value, Tensor)}
    run(q, k, v, **given)
    with Allocations() as made:  # type: ignore[no-untyped-call]
        run(q, k, v, **given)
    # The recording kernel's own output.
    assert made.largest == q.numel()


def test_unseen_keys_are_cut_off_as_views(vendor: Install) -> None:
    made, (q, k, v) = vendor(), qkv(seqlen_q=130, seqlen_k=400)
    call(q, k, v, window=(16, 0))
    assert made.given[1].data_ptr() == k[:, 254:].data_ptr()
    assert made.given[2].shape[1] == 146


def test_strided_tensors_go_in_as_they_are(vendor: Install) -> None:
    made, packed = vendor(), torch.zeros(2, 160, 8, 128, dtype=torch.bfloat16)
    q, k, v = packed[:, :, :4], packed[:, :, 4:6], packed[:, :, 6:]
    call(q, k, v)
    assert [x.stride() for x in made.given[:3]] == [q.stride()] * 3
