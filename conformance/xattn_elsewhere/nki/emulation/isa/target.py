"""The NeuronCore that is emulated, and what every instruction asks of its operands."""

from __future__ import annotations

import os
from enum import Enum, IntEnum
from typing import Any

from xattn_elsewhere.nki.emulation.access import NkiTensor
from xattn_elsewhere.nki.emulation.memory import PARTITIONS, PSUM_BANK_BYTES
from xattn_elsewhere.nki.emulation.tensor import LimitError, Region, Tensor


class Engine(Enum):
    """nisa.engine"""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5


class ReduceCmd(Enum):
    """nisa.reduce_cmd"""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class NcVersion(IntEnum):
    """nisa.nc_version"""

    gen2 = 2
    gen3 = 3
    gen4 = 4


GENERATIONS = {
    **dict.fromkeys(("trn1", "inf2", "gen2"), NcVersion.gen2),
    **dict.fromkeys(("trn2", "gen3"), NcVersion.gen3),
    **dict.fromkeys(("trn3", "gen4"), NcVersion.gen4),
}


def get_nc_version() -> NcVersion:
    """What NEURON_PLATFORM_TARGET_OVERRIDE says, or Trn2's. Of gen4 the kernels learn the name, no wider limit."""
    return GENERATIONS[os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")]


def tiles(call: str, *operands: Any, psum: bool = True) -> None:
    """On the chip, as many partitions each, and a legal range of them.

    psum: whether the instruction reads and writes PSUM.
    """
    partitions = {each.shape[0] for each in operands}
    if len(partitions) != 1 or max(partitions) > PARTITIONS:
        raise LimitError(f"nki.isa.{call}: tiles of {sorted(partitions)} partitions")
    for each in operands:
        if not each.buffer.on_chip or (not psum and each.buffer is Region.psum):
            raise LimitError(f"nki.isa.{call}: {each!r}")
        lanes(call, each)


def lanes(call: str, tile: NkiTensor) -> None:
    """The architecture guide: a range of partitions starts at 0, or 64, or (32 of them at most) at 32 or 96."""
    start, count = first_lane(tile), tile.shape[0]
    room = {0: 128, 32: 32, 64: 64, 96: 32}.get(start, 0)
    if count > room:
        raise LimitError(f"nki.isa.{call}: {count} partitions from {start} on")


def first_lane(tile: NkiTensor) -> int:
    root = tile.root
    return root.address[0] + (_place(tile) - _place(root)) // root.data.strides[0]


def same_size(call: str, *operands: Tensor) -> None:
    if len({each.size for each in operands}) != 1:
        raise LimitError(f"nki.isa.{call}: {', '.join(map(repr, operands))} are not of one size")


def one_psum(call: str, *inputs: Any) -> None:
    if sum(isinstance(each, Tensor) and each.buffer is Region.psum for each in inputs) > 1:
        raise LimitError(f"nki.isa.{call}: two inputs in PSUM")


def one_bank(call: str, tile: NkiTensor) -> None:
    """What a matmul writes lies in one bank of PSUM. A tile without an address starts a bank."""
    root = tile.root
    first = root.address[1] + (_place(tile) - _place(root)) % root.data.strides[0]
    last = first + sum((n - 1) * s for n, s in zip(tile.shape[1:], tile.data.strides[1:], strict=True))
    if first // PSUM_BANK_BYTES != (last + tile.data.itemsize - 1) // PSUM_BANK_BYTES:
        raise LimitError(f"nki.isa.{call}: {tile!r} lies in more than one bank of PSUM")


def _place(tile: NkiTensor) -> int:
    return int(tile.data.__array_interface__["data"][0])
