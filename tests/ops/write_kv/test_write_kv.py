"""write_kv against a loop over the tokens, by every backend that has it."""

from __future__ import annotations

import pytest
import torch
from ops.write_kv.illegal import illegal
from ops.write_kv.samples import samples, tokens
from torch import Tensor

import xattn

both = pytest.mark.parametrize("backend", ["reference", "sdpa"])


def looped(new: Tensor, cache: Tensor, slots: Tensor) -> Tensor:
    """A copy of the cache with the tokens written one by one."""
    cache, block_size = cache.clone(), cache.shape[1]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            cache[slot // block_size, slot % block_size] = new[token]
    return cache


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("slots", [[7, 0, 23, 4], [-1, 22, -1, 1], [-1, -1], [0], []], ids=str)
def test_each_token_lands_in_its_slot_and_nothing_else_changes(
    slots: list[int], dtype: torch.dtype, backend: str
) -> None:
    k, v, k_cache, v_cache, where = tokens(slots, headdim_v=6, dtype=dtype)
    k_cache.normal_(), v_cache.normal_()
    want = looped(k, k_cache, where), looped(v, v_cache, where)
    assert xattn.write_kv(k, v, k_cache, v_cache, where, backend=backend) is None
    assert torch.equal(k_cache, want[0])
    assert torch.equal(v_cache, want[1])


@both
@pytest.mark.parametrize("slots", [[7, 0, 23, 4], [-1, 22, -1, 1], [-1, -1]], ids=str)
def test_a_latent_lands_in_its_slot(slots: list[int], backend: str) -> None:
    k, _, cache, _, where = tokens(slots, nheads_k=1)
    cache.normal_()
    want = looped(k, cache, where)
    xattn.write_kv(k, None, cache, None, where, backend=backend)
    assert torch.equal(cache, want)


@both
def test_latents_are_quantised_as_keys_are(backend: str) -> None:
    k, v, cache, _, where = tokens([7, 0, 23, 4], nheads_k=1)
    scale = torch.ones(6, 4, 1)
    stored = [torch.zeros_like(cache, dtype=torch.int8) for _ in range(3)]
    xattn.write_kv(k, v, *stored[:2], where, k_scale=scale, v_scale=scale.clone(), backend=backend)
    latent_scale = torch.ones(6, 4, 1)
    xattn.write_kv(k, None, stored[2], None, where, k_scale=latent_scale, backend=backend)
    assert torch.equal(stored[2], stored[0])
    assert torch.equal(latent_scale, scale)


@both
def test_bits_are_kept(backend: str) -> None:
    """NaN with its payload, -0, inf: what is stored is what came."""
    k, v, k_cache, v_cache, where = tokens([3, 9])
    k[0, 0, :4] = torch.tensor([float("nan"), -0.0, float("inf"), -float("inf")])
    xattn.write_kv(k, v, k_cache, v_cache, where, backend=backend)
    assert torch.equal(k_cache.view(24, 2, 8)[3].view(torch.int32), k[0].view(torch.int32))


@both
def test_caches_in_one_buffer_heads_first_and_with_gaps(backend: str) -> None:
    k, v, _, _, where = tokens([7, -1, 23, 4])
    buffers = torch.full((6, 2, 4, 2, 8), 7.0), torch.full((6, 4, 2, 2, 8), 7.0), torch.full((12, 8, 4, 16), 7.0)
    for k_cache, v_cache in (
        (buffers[0][:, 0], buffers[0][:, 1]),
        (buffers[1][:, :, 0], buffers[1][:, :, 1]),
        (buffers[2][::2, ::2, ::2, :8], buffers[2][1::2, 1::2, 1::2, 8:]),
    ):
        want = looped(k, k_cache, where), looped(v, v_cache, where)
        xattn.write_kv(k, v, k_cache, v_cache, where, backend=backend)
        assert torch.equal(k_cache, want[0])
        assert torch.equal(v_cache, want[1])
    assert (buffers[2][1::2, ::2] == 7.0).all()


@both
def test_new_keys_of_any_strides(backend: str) -> None:
    k, v, k_cache, v_cache, where = tokens([7, 2, 23])
    strange = torch.empty(8, 3, 16)[::4].transpose(0, 1)[:, :, 8:]
    strange.copy_(k)
    xattn.write_kv(strange, v.transpose(0, 1).contiguous().transpose(0, 1), k_cache, v_cache, where, backend=backend)
    assert torch.equal(k_cache, looped(k, torch.zeros_like(k_cache), where))
    assert torch.equal(v_cache, looped(v, torch.zeros_like(v_cache), where))


def test_nothing_is_written_on_an_error() -> None:
    for name, wrong in illegal().items():
        caches = [x for x in wrong.call.tensors[2:4] if isinstance(x, Tensor) and not x.is_meta]
        before = [x.clone() for x in caches]
        with pytest.raises(xattn.InvalidArgumentError):
            wrong.call.of(xattn.write_kv)
        assert all(torch.equal(x, y) for x, y in zip(caches, before, strict=True)), name


@pytest.mark.parametrize("place", range(4))
def test_what_requires_grad_is_rejected_under_grad_mode(place: int) -> None:
    sample = samples()["plain"]
    sample.tensors[place].requires_grad_()
    with pytest.raises(xattn.UnsupportedError, match=r"grad_kv=required .*no_grad"):
        sample.of(xattn.write_kv)
    with torch.no_grad():
        sample.of(xattn.write_kv)


def test_autocast_casts_what_is_new_and_no_cache() -> None:
    k, v, k_cache, v_cache, where = tokens([7, 2, 23])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(xattn.InvalidArgumentError, match="k_cache: got float32, want bfloat16"):
            xattn.write_kv(k, v, k_cache, v_cache, where)
        stored = k_cache.bfloat16(), v_cache.bfloat16()
        xattn.write_kv(k, v, *stored, where)
    assert torch.equal(stored[0], looped(k.bfloat16(), k_cache.bfloat16(), where))


def test_a_step_of_as_many_tokens_as_before_makes_no_new_plan() -> None:
    explained = [str(xattn.explain(xattn.write_kv, *tokens(list(range(n)))).request) for n in (5, 8)]
    assert explained[0] == explained[1]
