"""The input generator: frozen to the bit, and each family does what its name says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.inputs.draw import STREAMS, Draw
from xattn_conformance.inputs.formats import FORMATS, decode, round_to
from xattn_conformance.inputs.philox import KNOWN_ANSWERS, philox4x32, words
from xattn_conformance.ops.attention.families import FAMILIES
from xattn_conformance.ops.attention.inputs import bits, digest, make, poisoned_with
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.ops.attention.recipes import RECIPES
from xattn_conformance.ops.attention.visibility import hidden_slots, visible

SIZES = ("batch", "seqlen_q", "seqlen_k", "nheads", "nheads_k", "headdim", "headdim_v")
WIDE = (2, 33, 129, 4, 2, 64, 64)


def case(
    family: str = "normal",
    dtype: str = "float32",
    shape: tuple[int, ...] = WIDE,
    grads: tuple[str, ...] = (),
    **options: Any,
) -> Case:
    sizes = dict(zip(SIZES, shape, strict=True))
    title = "+".join(f"{name}={value}" for name, value in options.items()) or "plain"
    return Case(
        op="attention", title=title, level="core", dtype=dtype, family=family, shape=sizes, options=options, grads=grads
    )


def plainly_visible(problem: Problem) -> np.ndarray:
    """(batch, nheads, seqlen_q, seqlen_k), one score at a time and straight from the contract."""
    _, _, seqlen_q, seqlen_k = problem.scores_shape
    mask = np.broadcast_to(True if problem.mask is None else problem.mask, problem.scores_shape)
    bias = np.broadcast_to(0.0 if problem.bias is None else problem.bias, problem.scores_shape)
    seen = np.zeros(problem.scores_shape, bool)
    for b, h, i, j in np.ndindex(*problem.scores_shape):
        length = seqlen_k if problem.seqlens_k is None else problem.seqlens_k[b]
        off = length - seqlen_q if problem.align == "bottom_right" else 0
        left, right = problem.window or (None, None)
        seen[b, h, i, j] = (
            j < length
            and (not problem.causal or j <= i + off)
            and (left is None or j >= i + off - left)
            and (right is None or j <= i + off + right)
            and mask[b, h, i, j]
            and bias[b, h, i, j] != -np.inf
        )
    return seen


def logits(problem: Problem) -> np.ndarray:
    """(batch, nheads, seqlen_q, seqlen_k), in float64, before anything is masked."""
    group = problem.q.shape[2] // problem.k.shape[2]
    scale = problem.q.shape[3] ** -0.5 if problem.scale is None else problem.scale
    return scale * np.einsum("bihd,bjhd->bhij", problem.q, np.repeat(problem.k, group, axis=2))


def shares(problem: Problem) -> np.ndarray:
    """The softmax of the visible logits; 0 for a dead row."""
    scores = np.where(plainly_visible(problem), logits(problem), -np.inf)
    top = scores.max(axis=3, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    return weights / np.maximum(weights.sum(axis=3, keepdims=True), 1e-300)


# ------------------------------------------------------------------------------------------------------------- Philox


def test_philox_gives_the_known_answers() -> None:
    assert len(KNOWN_ANSWERS) == 3
    for counter, key, answer in KNOWN_ANSWERS:
        made = philox4x32(tuple(np.array([word], np.uint64) for word in counter), key)
        assert tuple(int(word[0]) for word in made) == answer


def test_words_are_the_blocks_of_the_known_answer() -> None:
    """Where the key and the stream go: block 0 of stream 0 under key 0 is the first known answer."""
    assert words(0, 0, 0, 4).tolist() == list(KNOWN_ANSWERS[0][2])
    high = philox4x32(tuple(np.array([word], np.uint64) for word in (5, 0, 7, 0)), (0x55667788, 0x11223344))
    assert words(0x1122334455667788, 7, 20, 4).tolist() == [int(word[0]) for word in high]


@pytest.mark.parametrize(
    ("start", "count"), [(0, 0), (0, 1), (1, 3), (3, 2), (4, 4), (32765, 9), (65533, 40000), (99_999, 1)]
)
def test_any_slice_can_be_made_alone(start: int, count: int) -> None:
    whole = words(12345, 3, 0, 110_000)
    part = words(12345, 3, start, count)
    assert part.dtype == np.uint32
    assert np.array_equal(part, whole[start : start + count])


def test_a_slice_beyond_32_bits_of_counter() -> None:
    far = 4 * 2**32 + 1
    assert words(1, 0, far, 3).tolist() != words(1, 0, 1, 3).tolist()
    assert words(1, 0, far - 5, 8)[5:].tolist() == words(1, 0, far, 3).tolist()


def test_seed_and_stream_each_matter() -> None:
    streams = [words(seed, stream, 0, 64).tobytes() for seed in (0, 1, 2**32, 2**63) for stream in range(20)]
    assert len(set(streams)) == len(streams)
    assert sorted(STREAMS.values()) == list(range(len(STREAMS)))


def test_philox_is_quick() -> None:
    started = time.perf_counter()
    words(0, 0, 0, 2_000_000)
    assert time.perf_counter() - started < 1


# ------------------------------------------------------------------------------------------------------ distributions


def test_normal_values_are_nearly_normal() -> None:
    values = Draw(1).normal("q", (1_000_000,))
    assert abs(values.mean()) < 4e-3
    assert abs(values.std() - 1.0015) < 3e-3
    assert abs((values**3).mean()) < 1e-2
    # A sum of 8 uniform bytes: 3 - 6/5/8.
    assert abs((values**4).mean() / values.var() ** 2 - 2.85) < 0.02
    assert 4 < np.abs(values).max() < 4.9
    neighbours = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(neighbours) < 4e-3


def test_uniform_values_and_signs() -> None:
    values = Draw(1).uniform("q", (400_000,))
    assert values.min() >= 0
    assert values.max() < 1
    assert np.allclose(np.histogram(values, 16, (0, 1))[0] / values.size, 1 / 16, atol=2e-3)
    signs = Draw(1).signs("q", (400_000,))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5e-3


def test_normal_values_are_exact_sums_of_bytes() -> None:
    """From the words by hand, which is the frozen definition."""
    drawn = words(9, STREAMS["k"], 0, 20).tobytes()
    sums = [sum(drawn[8 * n : 8 * n + 8]) for n in range(10)]
    assert Draw(9).normal("k", (10,)).tolist() == [(total - 1020) * 157 / 32768 for total in sums]


def test_tensors_of_a_case_are_unrelated() -> None:
    made = make(case(shape=(1, 64, 64, 2, 2, 32, 32), grads=("qkv",)))
    assert made.dout is not None
    flat = [values.ravel() for values in (made.q, made.k, made.v, made.dout)]
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.1


def test_seen_nan_is_in_one_value_and_one_key_of_the_first_batch_row() -> None:
    made = make(case("seen_nan"))
    assert np.isfinite(made.q).all()
    for values, head in ((made.v, 0), (made.k, made.k.shape[2] - 1)):
        (index,) = np.argwhere(np.isnan(values))
        assert (index[0], index[2]) == (0, head)


# ----------------------------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_representable(family: str, dtype: str) -> None:
    """And finite, where no NaN is meant: a value that overflows float16 would be another test than its name says."""
    made = make(case(family, dtype, causal=True, align="top_left", bias="full", sinks="log", grads=("qkv", "lse")))
    for name, values in bits(made).items():
        format_ = dtype if name in ("q", "k", "v", "bias", "dout") else "float32"
        assert values.dtype == FORMATS[format_].codes
        assert np.array_equal(decode(values, format_), getattr(made, name), equal_nan=True)
        assert np.isfinite(getattr(made, name)).all() or (family in ("poison", "seen_nan") and name in "kv")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"subnormal", "poison", "seen_nan"}))
def test_dtypes_differ_by_rounding_alone(family: str) -> None:
    """float32 is not always exact (a needle's q is a quotient), but nearly: so it stands in for the unrounded."""
    single = make(case(family))
    for dtype in ("float16", "bfloat16"):
        half = make(case(family, dtype))
        for name in ("q", "k", "v"):
            want = getattr(single, name)
            assert np.abs(getattr(half, name) - want).max() <= 1.001 * FORMATS[dtype].unit_roundoff * np.abs(want).max()


@pytest.mark.parametrize(
    "shape", [(0, 3, 3, 2, 1, 8, 8), (2, 0, 3, 2, 1, 8, 8), (2, 3, 0, 4, 2, 8, 8), (1, 1, 1, 1, 1, 1, 1)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_0_and_1(family: str, shape: tuple[int, ...]) -> None:
    batch, seqlen_q, seqlen_k, nheads, nheads_k, headdim, headdim_v = shape
    every = {"sinks": "log", "alibi_slopes": "batch", "bias": "holes", "mask": "keys", "seqlens_k": "tiles"}
    made = make(case(family, shape=shape, grads=("qkv", "bias", "sinks", "lse"), causal=True, window=(1, 0), **every))
    assert made.q.shape == (batch, seqlen_q, nheads, headdim)
    assert made.k.shape == (batch, seqlen_k, nheads_k, headdim)
    assert made.v.shape == (batch, seqlen_k, nheads_k, headdim_v)
    assert made.dout is not None
    assert made.dlse is not None
    assert made.dout.shape == (batch, seqlen_q, nheads, headdim_v)
    assert made.dlse.shape == (batch, nheads, seqlen_q)
    assert made.grads == ("q", "k", "v", "bias", "sinks")
    assert poisoned_with(made, 0.0).k.shape == made.k.shape
    assert len(digest(made)) == 64


def test_options_reach_the_problem() -> None:
    made = make(
        case(causal=True, window=[3, None], align="top_left", scale=0.3, softcap=2.0, dropout_p=0.5, return_lse=True)
    )
    assert (made.causal, made.window, made.align, made.scale, made.softcap) == (True, (3, None), "top_left", 0.3, 2.0)
    assert (made.dropout_p, made.return_lse, made.deterministic, made.grads, made.dout) == (0.5, True, False, (), None)
    assert make(case(grads=("qkv",))).dlse is None


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="no family 'needles'; known: normal, outlier"):
        make(case("needles"))
    with pytest.raises(ValueError, match="no recipe 'loud' for sinks; known: normal, log"):
        make(case(sinks="loud"))


HIDING: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"causal": True, "align": "top_left"},
    {"window": (3, 2)},
    {"window": (0, None), "align": "top_left"},
    {"window": (None, 4), "seqlens_k": "ragged"},
    {"seqlens_k": "zero", "causal": True},
    {"mask": "random"},
    {"mask": "keys"},
    {"mask": "one"},
    {"bias": "holes", "window": (5, 5)},
    {"bias": "low"},
    {"mask": "matrix", "bias": "matrix", "causal": True, "seqlens_k": "last"},
)


@pytest.mark.parametrize("options", HIDING, ids=str)
@pytest.mark.parametrize("seqlens", [(7, 12), (12, 7)])
def test_visibility_follows_the_contract(options: dict[str, Any], seqlens: tuple[int, int]) -> None:
    made = make(case(shape=(2, *seqlens, 4, 2, 8, 8), **options))
    want = plainly_visible(made)
    assert np.array_equal(np.broadcast_to(visible(made), made.scores_shape), want)
    hidden = hidden_slots(made)
    for b, j, kv in np.ndindex(*hidden.shape):
        assert hidden[b, j, kv] == (not want[b, 2 * kv : 2 * kv + 2, :, j].any())


# ------------------------------------------------------------------------------------------------------------ recipes


def test_recipes_of_vectors() -> None:
    def made(**options: Any) -> Problem:
        return make(case(shape=(3, 8, 96, 6, 2, 8, 8), **options))

    for recipe, want in {"log": np.log(96), "zero": 0, "large": 30, "small": -30}.items():
        assert np.array_equal(made(sinks=recipe).sinks, np.full(6, want, np.float32))
    assert len(np.unique(made(sinks="normal").sinks)) == 6
    powers = 2.0 ** (-8 * np.arange(1, 7) / 6)
    assert np.array_equal(made(alibi_slopes="powers").alibi_slopes, powers.astype(np.float32))
    by_row = made(alibi_slopes="batch").alibi_slopes
    assert by_row.shape == (3, 6)
    assert len(np.unique(by_row)) == 18
    assert by_row.min() > 0
    assert made(alibi_slopes="steep").alibi_slopes.tolist() == [1, 2, 3, 4, 5, 6]
    lengths = {"ragged": [48, 64, 72], "last": [95] * 3, "zero": [0, 96, 0], "one": [1] * 3, "tiles": [63, 64, 65]}
    for recipe, wanted in lengths.items():
        assert made(seqlens_k=recipe).seqlens_k.tolist() == wanted
        assert bits(made(seqlens_k=recipe))["seqlens_k"].dtype == np.int32


SHAPES = {
    "full": (2, 4, 33, 129),
    "random": (2, 4, 33, 129),
    "one": (2, 4, 33, 129),
    "holes": (2, 4, 33, 129),
    "heads": (1, 4, 33, 129),
    "batch": (2, 1, 33, 129),
    "low": (2, 1, 33, 129),
    "matrix": (33, 129),
    "keys": (2, 1, 1, 129),
    "queries": (1, 4, 33, 1),
    "rows": (2, 1, 33, 1),
}


@pytest.mark.parametrize("recipe", RECIPES["bias"][1])
def test_recipes_of_biases(recipe: str) -> None:
    bias = make(case(bias=recipe)).bias
    assert bias.shape == SHAPES[recipe]
    masked, low = np.isneginf(bias), bias == -10000
    assert abs(bias[~masked & ~low].std() - 1) < 0.15
    assert masked.any() == (recipe == "holes")
    assert low.any() == (recipe == "low")
    if recipe == "holes":
        assert masked[..., -1].all()
        assert abs(masked[..., :-1].mean() - 0.3) < 0.02
    if recipe == "low":
        assert low[:, :, ::3].all()
        assert abs(low[:, :, 1::3].mean() - 0.5) < 0.05


@pytest.mark.parametrize("recipe", RECIPES["mask"][1])
def test_recipes_of_masks(recipe: str) -> None:
    mask = make(case(mask=recipe)).mask
    assert mask.shape == SHAPES[recipe]
    assert mask.dtype == bool
    if recipe in ("random", "heads", "matrix"):
        assert abs(mask.mean() - 0.7) < 0.02
    if recipe == "keys":
        ends = [129 - row.ravel()[::-1].argmax() for row in mask]
        assert ends[0] < ends[1] < 129
        assert all(not row.ravel()[129 * (b + 2) // (b + 4) :].any() for b, row in enumerate(mask))
        assert all(0.5 < row.ravel()[:end].mean() < 0.9 for row, end in zip(mask, ends, strict=True))
    if recipe == "rows":
        assert (~mask).any(axis=2).all()
        assert np.array_equal(mask[0, 0, :, 0], np.arange(33) % 3 != 2)
    if recipe == "one":
        assert (mask.sum(axis=3) == 1).all()
        assert len(np.unique(mask.argmax(axis=3))) > 80


# ----------------------------------------------------------------------------------------------------------- families


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
    cosines = np.einsum("bihd,bjhd->bhij", unit_q, unit_k)
    assert (np.abs(cosines).max(axis=3) > 0.999).all()
    return np.abs(cosines).argmax(axis=3)


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
        whole = seen.all(axis=4)  # tiles that the row sees to their end
        rises = sign * np.diff(scores.max(axis=4), axis=3)[whole[..., 1:]]
        assert rises.size > 100
        assert rises.min() > 1
        assert np.abs(logits(made)).max() < 70


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", HIDING, ids=str)
def test_poison_is_in_the_hidden_slots_alone(options: dict[str, Any], dtype: str) -> None:
    made = make(case("poison", dtype, (2, 7, 23, 4, 2, 8, 8), **options))
    hidden = ~plainly_visible(made).any(axis=2).reshape(2, 2, 2, 23).any(axis=2).transpose(0, 2, 1)
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


# ------------------------------------------------------------------------------------------------------------- frozen

EVERY = {"sinks": "log", "alibi_slopes": "powers", "bias": "holes", "mask": "keys", "seqlens_k": "tiles"}

# These digests are the frozen definition of the inputs: computed once, on x86-64, and part of the suite's version.
# Where one changes, every golden changes with it.
FROZEN: dict[str, tuple[Case, str]] = {
    "normal": (case(), "fe1dd495e0b3e96476fbec21efc11a645b3cf1dd771c5a7034da7ad5f9ba7ba4"),
    "outlier": (case("outlier", "float16"), "6afc634813c385d7fdc4ab961b5991f1de7cd81f6db5b270946ddfaf8ffe6491"),
    "positive": (
        case("positive", "bfloat16", (1, 65, 17, 6, 3, 40, 24)),
        "df459966d1ea96ed505da80669852e7947b50b59f492bff7a2fa7b7ed734282d",
    ),
    "needle": (
        case("needle", "bfloat16", causal=True, window=(16, 3), seqlens_k="ragged"),
        "00f023b23ba0fc6daadcfb791c45c2dba9c2e7b3033781a0adffa4f11a2e965c",
    ),
    "coded": (
        case("coded", "bfloat16", scale=-0.5),
        "0c0b9980d94ab321de660562ce38b6ba432cee465959314e2052d1787d8d214f",
    ),
    "huge": (
        case("huge", "float16", softcap=50.0, mask="one"),
        "e351b074b796b179cd3e286cbe244a2891b72a98af30e34ace0472bb8e4dbd16",
    ),
    "equal": (
        case("equal", "float32", mask="random"),
        "0250a563fbe6daf9a1f2bf0655670edee6378f4fbfd34525106092b128c3b272",
    ),
    "ascending": (
        case("ascending", "float32", bias="low"),
        "c6b162a21f47d6674f910d98f93e41748e2acbc4759b7eae388c187df991492c",
    ),
    "poison": (
        case("poison", "bfloat16", causal=True, align="top_left"),
        "4c676d1fa1c98c8dda4f6b80859791f8a1a12a94f2ec6628e9a8c51735ce98b7",
    ),
    "subnormal": (
        case("subnormal", "float16", mask="rows"),
        "39b184172c2adc7c732f9b0bb17179c82b3141137bf44ab4a52937182aac9a03",
    ),
    "every": (
        case("normal", "float32", (2, 33, 129, 6, 2, 13, 5), ("qkv", "bias", "sinks", "lse"), **EVERY),
        "08e03e4f1bc25bd3f769753e34a1efab5ea3b4f7590d9eb3de89640ee47181b5",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_inputs_are_frozen(name: str) -> None:
    frozen, want = FROZEN[name]
    assert digest(make(frozen)) == want


def test_inputs_are_the_same_in_any_process() -> None:
    here = os.path.dirname(__file__)
    code = (
        f"import sys; sys.path.insert(0, {here!r})\n"
        "from test_inputs import FROZEN, digest, make\n"
        "print([digest(make(case)) for case, _ in FROZEN.values()])"
    )
    for hash_seed, threads in (("1", "1"), ("77", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == str([want for _, want in FROZEN.values()]), done.stderr


def test_a_digest_tells_what_changed() -> None:
    made = make(case("normal", "bfloat16", mask="random", seqlens_k="ragged", grads=("qkv",)))
    turned = {name: getattr(made, name).copy() for name in ("q", "k", "v", "mask", "seqlens_k", "dout")}
    for name, values in turned.items():
        values.flat[-1] = not values.flat[-1] if name == "mask" else values.flat[-1] + 1
    others = [digest(replace(made, **{name: values})) for name, values in turned.items()]
    zeros = make(case("normal", "bfloat16", (0, 3, 3, 2, 1, 8, 8)))
    others += [digest(zeros), digest(replace(zeros, dtype="float16")), digest(replace(zeros, q=np.zeros((0, 4, 2, 8))))]
    # By a name alone: the same values, in the same place of the order and without a dtype that tells them apart.
    empty = make(case(shape=(0, 3, 3, 2, 1, 8, 8)))
    others += [digest(replace(empty, dout=np.ones(2))), digest(replace(empty, dlse=np.ones(2)))]
    assert len({digest(made), *others}) == len(others) + 1


# -------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize(
    ("shape", "seconds"), [((1, 4096, 4096, 2, 2, 64, 64), 1.0), ((1, 17, 33, 2, 2, 32, 32), 0.003)]
)
def test_speed(shape: tuple[int, ...], seconds: float) -> None:
    """The best of ten: other work on the machine is no part of it."""
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        make(case("needle", "bfloat16", shape, causal=True))
        taken.append(time.perf_counter() - started)
        if taken[-1] < seconds:
            break
    assert min(taken) < seconds
