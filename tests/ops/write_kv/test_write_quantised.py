"""`write_kv` into quantised caches: what is stored is the number nearest to x / scale, at every granularity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ops.quantised import GRANULARITIES, STORAGES, nearest, numbers_of, room, scale_of
from torch import Tensor

import xattn

both = pytest.mark.parametrize("backend", ["reference", "sdpa"])
each_storage = pytest.mark.parametrize("storage", STORAGES)
SLOTS = torch.tensor([14, 3, -1, 0, 23, 7])
HEADDIM = 16
TOKENS = torch.ones(6, 4, 1)
# What has a scale that is written: an output of the call.
WRITTEN = ("token", "token and head")


def new(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    k, v = (torch.randn(len(SLOTS), 2, HEADDIM, generator=generator).to(dtype) for _ in range(2))
    return k, v


def scales(storage: str, granularity: str) -> tuple[Tensor, Tensor]:
    """Such that some of what is written is cut off."""
    generator = torch.Generator().manual_seed(4)
    shape, qmax = GRANULARITIES[granularity], STORAGES[storage][1]
    k, v = ((1.5 + torch.rand(shape, generator=generator)) / qmax for _ in range(2))
    return k, v


@both
@each_storage
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_number_is_the_nearest(backend: str, storage: str, granularity: str) -> None:
    k, v = new()
    k_scale, v_scale = scales(storage, granularity)
    caches = room(storage, HEADDIM), room(storage, HEADDIM)
    before = [cache.clone() for cache in caches]
    xattn.write_kv(k, v, *caches, SLOTS, k_scale=k_scale, v_scale=v_scale, backend=backend)
    for x, cache, old, scale in zip((k, v), caches, before, (k_scale, v_scale), strict=True):
        numbers, cut = numbers_of(storage, cache), 0
        for row, slot in enumerate(SLOTS.tolist()):
            if slot < 0:
                continue
            block, place = divmod(slot, 4)
            wanted = x[row] / scale_of(scale, block, place)  # in float32, as the contract divides
            cut += int((wanted.abs() > STORAGES[storage][1]).sum())
            want = [[nearest(storage, each) for each in head] for head in wanted.double().tolist()]
            assert torch.equal(numbers[block, place], torch.tensor(want, dtype=torch.float64))
            old[block, place] = cache[block, place]
        assert cut > 0 or granularity in WRITTEN
        assert torch.equal(cache.view(torch.uint8), old.view(torch.uint8))


@both
@each_storage
@pytest.mark.parametrize("granularity", WRITTEN)
def test_the_scale_of_a_token_is_its_largest_number_and_goes_to_its_slot(
    backend: str, storage: str, granularity: str
) -> None:
    k, v = new()
    v[0] = v[1, 1] = 0.0
    scales = [torch.full(GRANULARITIES[granularity], 7.0) for _ in range(2)]
    caches = room(storage, HEADDIM), room(storage, HEADDIM)
    xattn.write_kv(k, v, *caches, SLOTS, k_scale=scales[0], v_scale=scales[1], backend=backend)
    for x, scale in zip((k, v), scales, strict=True):
        want = torch.full(GRANULARITIES[granularity], 7.0)
        for row, slot in enumerate(SLOTS.tolist()):
            heads = x[row].flatten()[None] if granularity == "token" else x[row]
            if slot >= 0:
                largest = [max(map(abs, head)) for head in heads.tolist()]
                want[divmod(slot, 4)] = torch.tensor(
                    [(one or STORAGES[storage][1]) / STORAGES[storage][1] for one in largest]
                )
        assert torch.equal(scale, want)


@both
@each_storage
def test_halves_go_to_the_even_number(backend: str, storage: str) -> None:
    halves = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 6.5])
    if not storage.startswith("int"):
        halves = torch.tensor([17.0, 19.0, 34.0, 38.0, -17.0, -19.0, 144.0 + 8, 2.0**-10])
    caches = room(storage, 8), room(storage, 8)
    one = torch.ones(())
    x = halves.expand(1, 2, 8)
    xattn.write_kv(x, x, *caches, torch.tensor([5]), k_scale=one, v_scale=one, backend=backend)
    want = [nearest(storage, each) for each in halves.tolist()]
    assert numbers_of(storage, caches[0])[1, 1, 0].tolist() == want


@both
@each_storage
def test_what_is_not_finite_spoils_nothing_else(backend: str, storage: str) -> None:
    k, v = new()
    spoilt = k.clone()
    spoilt[1, 0, 2], spoilt[1, 0, 3], spoilt[1, 1, 0] = math.nan, math.inf, -math.inf
    found, scales = [], []
    for x in (k, spoilt):
        caches = room(storage, HEADDIM), room(storage, HEADDIM)
        scales.append([torch.ones(GRANULARITIES["token and head"]) for _ in range(2)])
        xattn.write_kv(x, v, *caches, SLOTS, k_scale=scales[-1][0], v_scale=scales[-1][1], backend=backend)
        found.append(numbers_of(storage, caches[0]))
    fine = torch.ones_like(scales[0][0], dtype=torch.bool)
    fine[0, 3] = False
    assert torch.equal(scales[0][0][fine], scales[1][0][fine])
    assert torch.equal(found[0][fine], found[1][fine])
    assert (found[1] * scales[1][0].unsqueeze(-1))[0, 3].isnan().any(-1).all()
    assert torch.equal(scales[0][1], scales[1][1])


@both
@each_storage
def test_what_is_infinite_is_cut_off_where_the_scale_is_given(backend: str, storage: str) -> None:
    k, v = new()
    k[1, 0, 3], k[1, 1, 0] = math.inf, -math.inf
    k_scale, v_scale = scales(storage, "head")
    caches = room(storage, HEADDIM), room(storage, HEADDIM)
    xattn.write_kv(k, v, *caches, SLOTS, k_scale=k_scale, v_scale=v_scale, backend=backend)
    found, qmax = numbers_of(storage, caches[0]), STORAGES[storage][1]
    assert (found[0, 3, 0, 3].item(), found[0, 3, 1, 0].item()) == (qmax, -qmax)
    assert found.abs().max() <= qmax


@both
def test_half_precision_is_divided_in_float32(backend: str) -> None:
    k, v = new(torch.bfloat16)
    scale = torch.tensor(0.0123)
    wide, narrow = [(room("int8", HEADDIM), room("int8", HEADDIM)) for _ in range(2)]
    xattn.write_kv(k, v, *narrow, SLOTS, k_scale=scale, v_scale=scale, backend=backend)
    xattn.write_kv(k.float(), v.float(), *wide, SLOTS, k_scale=scale, v_scale=scale, backend=backend)
    assert torch.equal(narrow[0], wide[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k_scale": torch.ones(3)}, r"k_scale: got shape \(3,\)"),
        ({"v_scale": torch.ones(6, 4)}, r"v_scale: got shape \(6, 4\)"),
        ({"k_scale": torch.ones(1)}, r"k_scale: got shape \(1,\)"),
        ({"k_scale": torch.ones((), dtype=torch.float64)}, "k_scale: got float64"),
        ({"k_scale": torch.ones(1, 1, 2).expand(6, 4, 2)}, r"k_scale: got strides \(0, 0, 1\)"),
        ({"k_scale": TOKENS, "v_scale": TOKENS}, "v_scale: got the memory of k_scale"),
        ({"k_scale": None}, "k_scale: got None, want the scale of the int8 cache"),
        ({"v_cache": room("int4", 16)}, "v_cache: got uint8, want int8"),
        ({"v_cache": torch.zeros(6, 4, 2, 16, dtype=torch.float8_e5m2)}, "v_cache: got float8_e5m2"),
        ({"k_cache": room("int4", 16), "v_cache": room("int8", 16)}, "v_cache: got int8, want uint8"),
        ({"k_cache": room("int8", 8)}, "k_cache: got headdim 8"),
        ({"k_cache": room("int4", 32), "v_cache": room("int4", 32)}, "k_cache: got last dimension 16"),
        ({"k": torch.ones(6, 2, 15), "k_cache": room("int4", 14), "v_cache": room("int4", 16)}, "k: got headdim 15"),
    ],
    ids=str,
)
def test_what_contradicts_itself_writes_nothing(change: dict[str, Tensor | None], said: str) -> None:
    k, v = new()
    one = torch.ones(())
    call: dict[str, Any] = {
        "k": k, "v": v, "k_cache": room("int8", HEADDIM), "v_cache": room("int8", HEADDIM), "slots": SLOTS,
        "k_scale": one, "v_scale": one, **change,
    }  # fmt: skip
    before = [call[name].clone().view(torch.uint8) for name in ("k_cache", "v_cache")]
    with pytest.raises(xattn.InvalidArgumentError, match=f"^{said}"):
        xattn.write_kv(**call)
    after = [call[name].view(torch.uint8) for name in ("k_cache", "v_cache")]
    assert all(map(torch.equal, before, after))
