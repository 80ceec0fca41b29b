"""rotary_write_kv means apply_rotary, then write_kv: bit for bit, of every sample and backend."""

from __future__ import annotations

import pytest
import torch
from ops.rotary_write_kv.samples import latents, samples, tokens
from sample import Sample, equal

import xattn

SAMPLES = samples()


def by_two(sample: Sample, backend: str) -> list[torch.Tensor]:
    """q and the caches after the two calls."""
    q, k, v, cos, sin, k_cache, v_cache, slots = sample.tensors
    named = dict(sample.named)
    interleaved = named.pop("interleaved", False)
    width = 2 * cos.shape[1]
    if v is None:
        turned = [
            torch.cat((x[..., :-width], rotated(x[..., -width:], cos, sin, interleaved, backend)), 2) for x in (q, k)
        ]
    else:
        turned = [rotated(x, cos, sin, interleaved, backend) for x in (q, k)]
    xattn.write_kv(turned[1], v, k_cache, v_cache, slots, backend=backend, **named)
    return [turned[0], *(x for x in (k_cache, v_cache) if x is not None)]


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool, backend: str) -> torch.Tensor:
    return xattn.apply_rotary(x[None].contiguous(), None, cos, sin, interleaved=interleaved, backend=backend)[0][0]


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_the_two_calls(name: str, backend: str) -> None:
    one, other = samples()[name], samples()[name]
    assert equal(one.of(xattn.rotary_write_kv, backend=backend), by_two(other, backend))


def test_rows_without_a_slot_are_rotated_and_not_written() -> None:
    q, k, v, cos, sin, k_cache, v_cache, slots = tokens([-1, 3])
    turned = xattn.rotary_write_kv(q, k, v, cos, sin, k_cache, v_cache, slots)
    want, keys = xattn.apply_rotary(q[None], k[None], cos, sin)
    assert torch.equal(turned, want[0])
    assert torch.equal(k_cache.flatten(0, 1)[3], keys[0, 1])
    assert k_cache.flatten(0, 1).count_nonzero() == keys[0, 1].count_nonzero()


def test_of_a_latent_the_first_part_stays() -> None:
    q, k, v, cos, sin, cache, _, slots = latents([3, 9])
    assert q is not None
    assert k is not None
    assert cos is not None
    assert sin is not None
    assert cache is not None
    assert slots is not None
    turned = xattn.rotary_write_kv(q, k, v, cos, sin, cache, None, slots)
    written = cache.flatten(0, 1)[slots]
    assert torch.equal(written[..., :4], k[..., :4])
    assert torch.equal(turned[..., :4], q[..., :4])
    assert not torch.equal(written[..., 4:], k[..., 4:])


def test_nothing_is_written_on_an_error() -> None:
    q, k, v, cos, sin, k_cache, v_cache, slots = tokens([3, 24])
    with pytest.raises(xattn.InvalidArgumentError, match="24 at 1"):
        xattn.rotary_write_kv(q, k, v, cos, sin, k_cache, v_cache, slots)
    assert not k_cache.any()
