"""Each family of attention's inputs does what its name says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conformance.handmade import HIDING, WIDE, case, logits, plainly_visible, shares
from xattn_conformance.case import DTYPES
from xattn_conformance.inputs.formats import FORMATS, round_to
from xattn_conformance.ops.attention.inputs import make, poisoned_with
from xattn_conformance.ops.attention.problem import Problem


@pytest.mark.parametrize("dtype", DTYPES)
def test_outlier(dtype: str) -> None:
    made = make(case("outlier", dtype))
    for name in ("q", "k", "v"):
        values = np.abs(getattr(made, name))
        assert values.max() > 8
        assert 1e-4 < (values > 5).mean() < 2e-3
        assert abs(values[values < 5].std() - np.sqrt(1 - 2 / np.pi)) < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_positive(dtype: str) -> None:
    made = make(case("positive", dtype))
    for values in (made.q, made.k, made.v):
        assert values.min() >= 0
        assert values.max() <= 1
        assert abs(values.mean() - 0.5) < 0.02


def needles(made: Problem) -> np.ndarray:
    """The key whose direction each query has, found from q and k alone."""
    group = made.q.shape[2] // made.k.shape[2]
    keys = np.repeat(made.k, group, axis=2)
    unit_q, unit_k = (x / np.linalg.norm(x, axis=3, keepdims=True) for x in (made.q, keys))
    cosines: np.ndarray = np.abs(np.einsum("bihd,bjhd->bhij", unit_q, unit_k))
    assert (cosines.max(axis=3) > 0.999).all()
    keys_found: np.ndarray = cosines.argmax(axis=3)
    return keys_found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"window": (16, 3)}, {"causal": True, "seqlens_k": "ragged"}, {"scale": -0.5}],
    ids=str,
)
def test_needle(options: dict[str, Any], dtype: str) -> None:
    made = make(case("needle", dtype, **options))
    target, p, seen = needles(made), shares(made), plainly_visible(made)
    share = np.take_along_axis(p, target[..., None], axis=3)[..., 0]
    its_own = np.take_along_axis(seen, target[..., None], axis=3)[..., 0]
    assert its_own.mean() > 0.5
    assert share[its_own].min() > 0.5
    assert np.median(share[its_own]) > 0.95
    first, last = seen.argmax(axis=3), 128 - seen[..., ::-1].argmax(axis=3)
    turns = [last, first, target // 64 * 64, target // 64 * 64 + 63]
    assert all((target == turn).any(axis=2).all() for turn in turns[:2])
    assert all((target == turn).any() for turn in turns[2:])
    if "window" in options or "seqlens_k" in options:
        assert (target == last + 1).any()
    if "window" in options:
        assert (target == first - 1).any()


def test_needle_at_each_length_and_headdim() -> None:
    """The mass of a needle where it is hardest to get: few dimensions, many keys."""
    for seqlen_k, headdim, least in ((4096, 64, 0.9), (1000, 64, 0.9), (65, 16, 0.8), (17, 8, 0.5), (2, 64, 0.9)):
        made = make(case("needle", shape=(1, 48, seqlen_k, 2, 1, headdim, 8)))
        share = np.take_along_axis(shares(made), needles(made)[..., None], axis=3)
        assert np.median(share) > least


def test_a_needle_makes_an_edge_matter() -> None:
    """One key more or less in the window changes out by as much as a value is large."""
    made = make(case("needle", "bfloat16", window=(16, 3)))
    values = np.repeat(made.v, 2, axis=2).transpose(0, 2, 1, 3)
    out = shares(made) @ values
    for window in ((15, 3), (17, 3), (16, 2), (16, 4)):
        assert np.abs(shares(replace(made, window=window)) @ values - out).max() > 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [WIDE, (3, 9, 300, 6, 3, 16, 5), (1, 2, 3, 1, 1, 8, 3)])
def test_coded(shape: tuple[int, ...], dtype: str) -> None:
    made = make(case("coded", dtype, shape))
    batch, _, seqlen_k, _, nheads_k, _, headdim_v = shape
    digits = ((made.v + 1) * 8).astype(int)
    assert digits.min() >= 0
    assert digits.max() <= 15
    count = len(np.base_repr(batch * seqlen_k * nheads_k - 1, 16))
    assert headdim_v >= count
    slots = (digits[..., :count] * 16 ** np.arange(count)).sum(axis=3)
    assert np.array_equal(slots, np.arange(batch * seqlen_k * nheads_k).reshape(slots.shape))
    assert all(np.array_equal(digits[..., d], digits[..., d % count]) for d in range(headdim_v))


def test_coded_reads_back_through_the_softmax() -> None:
    """What a needle query reads spells the slot it read."""
    made = make(case("coded", "bfloat16"))
    target, p = needles(made), shares(made)
    out = p @ np.repeat(made.v, 2, axis=2).transpose(0, 2, 1, 3)
    sure = p.max(axis=3) > 0.98
    assert sure.mean() > 0.5
    digits = np.rint((out[..., :3] + 1) * 8).astype(int)
    b, h, _ = np.ogrid[:2, :4, :33]
    assert np.array_equal((digits * [1, 16, 256]).sum(axis=3)[sure], ((b * 129 + target) * 2 + h // 2)[sure])


def test_ones() -> None:
    made = make(case("ones", "bfloat16", causal=True))
    assert (made.v == 1).all()
    assert len(np.unique(made.k)) > 100


@pytest.mark.parametrize("dtype", DTYPES)
def test_onehot(dtype: str) -> None:
    made = make(case("onehot", dtype, (2, 33, 48, 4, 2, 64, 64)))
    out = shares(made) @ np.repeat(made.v, 2, axis=2).transpose(0, 2, 1, 3)
    assert np.array_equal(out[..., :48], shares(made))
    assert (out[..., 48:] == 0).all()
    folded = make(case("onehot", dtype, (1, 5, 12, 1, 1, 8, 5)))
    assert np.array_equal(folded.v[0, :, 0].argmax(axis=1), np.arange(12) % 5)
    assert (folded.v.sum(axis=3) == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"sinks": "log"}], ids=str)
def test_probe(options: dict[str, Any], dtype: str) -> None:
    """The last column of out is exp(-lse), sink included."""
    made = make(case("probe", dtype, **options))
    assert (logits(made)[..., 0] == 0).all()
    scores = np.where(plainly_visible(made), logits(made), -np.inf)
    total = np.exp(scores).sum(axis=3) + (0 if made.sinks is None else np.exp(made.sinks)[:, None])
    out = (np.exp(scores) / total[..., None]) @ np.repeat(made.v, 2, axis=2).transpose(0, 2, 1, 3)
    assert np.allclose(out[..., -1], 1 / total, rtol=1e-12, atol=0)
    assert len(np.unique(made.v[..., :-1])) > 100


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("headdim", [1, 8, 64, 96, 256])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"scale": 1.0}, {"scale": -0.1}], ids=str)
def test_huge(options: dict[str, Any], headdim: int, dtype: str) -> None:
    made = make(case("huge", dtype, (2, 17, 33, 4, 2, headdim, 8), **options))
    assert max(np.abs(made.q).max(), np.abs(made.k).max()) < 2000
    scores = logits(made)
    assert np.abs(scores).max() < 136
    # Scores before they are scaled, as a kernel may hold them in float16.
    assert np.abs(scores / (headdim**-0.5 if made.scale is None else made.scale)).max() < 65504
    seen = plainly_visible(made)
    assert np.where(seen, scores, -np.inf).max() >= 130
    assert np.where(seen, scores, np.inf).min() <= -130
    if headdim < 64:
        return
    # Without the maximum taken off: some row overflows float32, and of some nothing is left.
    with np.errstate(over="ignore", under="ignore"):
        bare = np.exp(np.where(seen, scores, -np.inf).astype(np.float32)).sum(axis=3)
    live = seen.any(axis=3)
    assert np.isinf(bare[live]).any()
    assert (bare[live] < 1e-38).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal(dtype: str) -> None:
    """The same bits whatever order a float32 accumulator adds in."""
    made = make(case("equal", dtype))
    assert (made.k == made.k[:, :1]).all()
    assert all(np.array_equal(4 * x, np.rint(4 * x)) for x in (made.q, made.k))
    q, k = made.q.astype(np.float32), np.repeat(made.k, 2, axis=2).astype(np.float32)
    forward = np.einsum("bihd,bjhd->bhij", q, k)
    backward = sum(
        (q[..., d, None].transpose(0, 2, 1, 3) * k[..., d].transpose(0, 2, 1)[:, :, None]) for d in range(63, -1, -1)
    )
    assert np.array_equal(forward, backward)
    assert (forward == forward[..., :1]).all()
    assert len(np.unique(forward)) > 100
    assert len(np.unique(made.v[0, :, 0, 0])) > 50


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seqlen_k", [192, 257, 1000])
@pytest.mark.parametrize("causal", [False, True])
def test_ascending_and_descending(causal: bool, seqlen_k: int, dtype: str) -> None:
    for family, sign in (("ascending", 1), ("descending", -1)):
        made = make(case(family, dtype, (1, 65, seqlen_k, 2, 1, 64, 8), causal=causal))
        tiled = slice(0, seqlen_k // 64 * 64)
        scores, seen = (x[..., tiled].reshape(1, 2, 65, -1, 64) for x in (logits(made), plainly_visible(made)))
        whole = np.all(seen, axis=4)  # tiles that the row sees to their end
        rises = sign * np.diff(np.max(scores, axis=4), axis=3)[whole[..., 1:]]
        assert rises.size > 100
        assert rises.min() > 1
        assert np.abs(logits(made)).max() < 70


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", HIDING, ids=str)
def test_poison_is_in_the_hidden_slots_alone(options: dict[str, Any], dtype: str) -> None:
    made = make(case("poison", dtype, (2, 7, 23, 4, 2, 8, 8), **options))
    seen = np.any(plainly_visible(made), axis=2)
    hidden = np.swapaxes(~np.any(seen.reshape(2, 2, 2, 23), axis=2), 1, 2)
    for values in (made.k, made.v):
        poisoned = ~np.isfinite(values) | (np.abs(values) > 1e29)
        assert np.array_equal(poisoned.all(axis=3), hidden)
        assert np.array_equal(poisoned.any(axis=3), hidden)
    if hidden.sum() > 20:
        seen = {str(value) for value in made.v[hidden].ravel()}
        assert seen == {str(value) for value in round_to(np.array([np.nan, np.inf, -np.inf, 1e30]), dtype)}
    clean = poisoned_with(made, 0.0)
    assert (clean.k[hidden] == 0).all()
    assert (clean.v[hidden] == 0).all()
    assert np.array_equal(clean.k[~hidden], made.k[~hidden])
    assert np.array_equal(clean.v[~hidden], made.v[~hidden])
    assert np.array_equal(clean.q, made.q)


@pytest.mark.parametrize("options", [{"mask": "rows"}, {"causal": True}], ids=str)
def test_dead(options: dict[str, Any]) -> None:
    made = make(case("dead", "bfloat16", (2, 129, 33, 4, 2, 64, 64), **options))
    live = plainly_visible(made).any(axis=3)
    assert 0 < live.mean() < 1
    assert np.abs(made.v.mean(axis=1)).min() > 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal(dtype: str) -> None:
    made, smallest = make(case("subnormal", dtype)), FORMATS[dtype].smallest_normal

    def tiny(values: np.ndarray) -> bool:
        return bool((np.abs(values) < smallest).all() and (values != 0).mean() > 0.9 and (values < 0).any())

    assert tiny(made.k[:, ::3])
    assert (made.k[:, 1::3] == 0).all()
    assert (np.abs(made.k[:, 2::3]) > smallest).mean() > 0.99
    assert tiny(made.v[..., 1::2])
    out = shares(made) @ np.repeat(made.v, 2, axis=2).transpose(0, 2, 1, 3)
    assert (np.abs(out[..., 1::2]) < smallest).all()
    assert np.abs(out[..., ::2]).max() > 0.1
