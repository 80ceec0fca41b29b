"""The generator of random tensors: known answers, slices, distributions."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conformance.handmade import case
from xattn_conformance import ops
from xattn_conformance.inputs.draw import Draw
from xattn_conformance.inputs.philox import KNOWN_ANSWERS, philox4x32, words
from xattn_conformance.ops.attention.inputs import make


def philox(*counter: int, key: tuple[int, int]) -> tuple[int, ...]:
    """The four words of one block."""
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
    return tuple(int(word[0]) for word in philox4x32((c0, c1, c2, c3), key))


def test_philox_gives_the_known_answers() -> None:
    assert len(KNOWN_ANSWERS) == 3
    for counter, key, answer in KNOWN_ANSWERS:
        assert philox(*counter, key=key) == answer


def test_words_are_the_blocks_of_the_known_answer() -> None:
    """Where the key and the stream go: block 0 of stream 0 under key 0 is the first known answer."""
    assert words(0, 0, 0, 4).tolist() == list(KNOWN_ANSWERS[0][2])
    high = philox(5, 0, 7, 0, key=(0x55667788, 0x11223344))
    assert words(0x1122334455667788, 7, 20, 4).tolist() == list(high)


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


def test_no_two_things_that_an_op_draws_share_a_stream() -> None:
    rooms = [path.parent.name for path in Path(ops.__path__[0]).glob("*/families.py")]
    assert rooms
    for room in rooms:
        streams: dict[str, int] = import_module(f"{ops.__name__}.{room}.families").STREAMS
        assert len(set(streams.values())) == len(streams), room
        assert all(0 <= stream < 2**32 for stream in streams.values())


def test_philox_is_quick() -> None:
    started = time.perf_counter()
    words(0, 0, 0, 2_000_000)
    assert time.perf_counter() - started < 1


def test_normal_values_are_nearly_normal() -> None:
    values = Draw(1, {"q": 0}).normal("q", (1_000_000,))
    assert abs(values.mean()) < 4e-3
    assert abs(values.std() - 1.0015) < 3e-3
    assert abs((values**3).mean()) < 1e-2
    # A sum of 8 uniform bytes: 3 - 6/5/8.
    assert abs((values**4).mean() / values.var() ** 2 - 2.85) < 0.02
    assert 4 < np.abs(values).max() < 4.9
    neighbours = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(neighbours) < 4e-3


def test_uniform_values_and_signs() -> None:
    values = Draw(1, {"q": 0}).uniform("q", (400_000,))
    assert values.min() >= 0
    assert values.max() < 1
    assert np.allclose(np.histogram(values, 16, (0, 1))[0] / values.size, 1 / 16, atol=2e-3)
    signs = Draw(1, {"q": 0}).signs("q", (400_000,))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 5e-3


def test_normal_values_are_exact_sums_of_bytes() -> None:
    """From the words by hand, which is the frozen definition."""
    drawn = words(9, 1, 0, 20).tobytes()
    sums = [sum(drawn[8 * n : 8 * n + 8]) for n in range(10)]
    assert Draw(9, {"k": 1}).normal("k", (10,)).tolist() == [(total - 1020) * 157 / 32768 for total in sums]


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
