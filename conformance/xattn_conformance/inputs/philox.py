"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

Integers only: the same words on every platform and under every version of NumPy. A word depends on (seed, stream,
index) and nothing else, so any slice of a tensor can be made alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

# Counter, key and result as in the file kat_vectors of Random123, which its authors publish.
KNOWN_ANSWERS: tuple[tuple[tuple[int, ...], tuple[int, int], tuple[int, ...]], ...] = (
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# Blocks of four words that are made at once: their arrays stay in the cache.
_CHUNK = 1 << 13


def philox4x32(counter: tuple[U64, U64, U64, U64], key: tuple[int, int]) -> tuple[U64, U64, U64, U64]:
    """The bijection itself, element by element; every number below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(seed: int, stream: int, start: int, count: int) -> NDArray[np.uint32]:
    """Words start .. start + count of a stream. seed: 64 bits, the key. stream: 32 bits of the counter."""
    first, end = start // 4, (start + count + 3) // 4
    made = np.empty((end - first, 4), np.uint32)
    for at in range(first, end, _CHUNK):
        index = np.arange(at, min(at + _CHUNK, end), dtype=np.uint64)
        counter = (index & _LOW, index >> _HALF, np.full_like(index, stream), np.zeros_like(index))
        for lane, values in enumerate(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))):
            made[at - first : at - first + len(index), lane] = values
    return made.reshape(-1)[start - 4 * first :][:count]
