"""What a kernel works out of a step's lengths on the host: `plan.prepare`, and who may have such a kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ops.every_op import reference
from support import Load, backend_of, plugin
from torch import Tensor

import xattn
from xattn import PagedBatch, PagedKernel, PagedRequest
from xattn.plugin import Plan


class Scheduled:
    """A plan with a schedule, here the number of pages of each sequence, at a fixed address."""

    def __init__(self, request: PagedRequest) -> None:
        self.run = reference("paged_attention").plan(request)
        self.block_size = request.block_size
        self.seen: list[list[int]] = []

    def prepare(self, batch: PagedBatch) -> None:
        lists = batch.lists()
        assert lists is not None
        schedule = batch.kept.setdefault("acme", torch.empty(batch.batch, dtype=torch.int32))
        schedule.copy_(torch.tensor([-(-keys // self.block_size) for keys in lists.seqlens_k]))

    def __call__(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: PagedBatch) -> Any:
        self.seen.append(batch.kept["acme"].tolist())
        return self.run(q, k_cache, v_cache, batch)


class Preparing(PagedKernel):
    capabilities = reference("paged_attention").capabilities
    prepares_on_host = True

    def __init__(self) -> None:
        self.made: list[Scheduled] = []

    def plan(self, request: PagedRequest) -> Plan:
        self.made.append(Scheduled(request))
        return self.made[-1]


def a_batch() -> PagedBatch:
    batch = PagedBatch(torch.zeros(2, 4, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
    batch.update_([[1, 0, 2], [3]], [9, 2])
    return batch


def test_a_held_plan_prepares_each_step_once_for_all_layers(load: Load) -> None:
    kernel = Preparing()
    load([plugin("acme", backend_of("acme", kernel))])
    q, pool, batch = torch.randn(2, 2, 8), torch.randn(4, 4, 2, 8), a_batch()
    held: Any = xattn.plan(xattn.paged_attention, q, pool, pool.clone(), batch, backend="acme")
    held.prepare(batch)
    address = batch.kept["acme"].data_ptr()
    for _ in range(2):
        held(q, pool, pool.clone(), batch)
    batch.update_([[1, 0, 2], [3]], [12, 5], max_seqlen_k=16)
    held.prepare(batch)
    held(q, pool, pool.clone(), batch)
    assert kernel.made[-1].seen == [[3, 1], [3, 1], [3, 2]]
    assert batch.kept["acme"].data_ptr() == address


def test_a_plan_that_prepares_nothing_has_nothing_to_do() -> None:
    q, pool, batch = torch.randn(2, 2, 8), torch.randn(4, 4, 2, 8), a_batch()
    held = xattn.plan(xattn.paged_attention, q, pool, pool.clone(), batch, backend="reference")
    held.prepare(batch)
    assert batch.kept == {}


def test_without_lengths_on_the_host_such_a_kernel_declines(load: Load) -> None:
    kernel = Preparing()
    load([plugin("acme", backend_of("acme", kernel))])
    q, pool = torch.randn(2, 2, 8), torch.randn(4, 4, 2, 8)
    request: Any = xattn.explain(xattn.paged_attention, q, pool, pool.clone(), a_batch(), backend="acme").request
    assert kernel.reasons(request) == []
    (reason,) = kernel.reasons(replace(request, host_lengths=False))
    assert (reason.code, "update_ as lists" in reason.hint) == ("lengths_on_host", True)


@pytest.mark.parametrize("listed", [False, True])
def test_a_batch_on_a_device_knows_its_lengths_from_lists_alone(listed: bool) -> None:
    batch = PagedBatch(
        torch.zeros(2, 4, dtype=torch.int32, device="meta"), torch.zeros(2, dtype=torch.int32, device="meta")
    )
    assert not batch.on_host
    lengths = [9, 2] if listed else torch.tensor([9, 2], dtype=torch.int32)
    batch.update_([[1, 0, 2], [3]], lengths)
    assert batch.on_host == listed
