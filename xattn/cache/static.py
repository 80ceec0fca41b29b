"""A padded cache of one layer: room for as many keys in each batch row."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.cache.sizes import check_sizes
from xattn.errors import InvalidArgumentError


class StaticKVCache:
    """Keys and values at fixed addresses, for `xattn.attention(q, cache.k, cache.v, seqlens_k=cache.seqlens_k)`.

    k, v: (batch, max_seqlen, nheads_k, headdim or headdim_v), zeros at first. Their order in memory follows the device:
    one head's keys side by side on a CPU, which reads them up to twice as fast so, the order of the sizes elsewhere, as
    vendors' kernels want it. seqlens_k: (batch,) int32, on the device. lengths: the same numbers on the host.
    """

    def __init__(
        self,
        batch: int,
        max_seqlen: int,
        nheads_k: int,
        headdim: int,
        headdim_v: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_sizes(dtype, batch=batch, max_seqlen=max_seqlen, nheads_k=nheads_k, headdim=headdim, headdim_v=headdim_v)
        sizes = batch, max_seqlen, nheads_k
        self.k = _zeros((*sizes, headdim), dtype, torch.device(device))
        self.v = _zeros((*sizes, headdim if headdim_v is None else headdim_v), dtype, torch.device(device))
        self.seqlens_k = torch.zeros(batch, dtype=torch.int32, device=device)
        self.lengths = [0] * batch

    def append(self, k: Tensor, v: Tensor) -> None:
        """Put (batch, new, nheads_k, headdim) keys, and values, after those that each row has.

        Raises InvalidArgumentError for other sizes, another dtype or device, what wants a gradient, and for a row
        without room, which it names; nothing was written then.
        """
        count, room = k.shape[1] if isinstance(k, Tensor) and k.dim() == 4 else 0, self.k.shape[1]
        for name, new, cache in (("k", k, self.k), ("v", v, self.v)):
            if not isinstance(new, Tensor):
                raise InvalidArgumentError(name, type(new).__name__, "a torch.Tensor")
            want = (cache.shape[0], count, *cache.shape[2:])
            if (tuple(new.shape), new.dtype, new.device) != (want, cache.dtype, cache.device):
                got = f"{tuple(new.shape)} {new.dtype} on {new.device}"
                heads_first = (tuple(new.shape[:2]), new.shape[3:]) == ((want[0], want[2]), cache.shape[3:])
                hint = "Of (batch, nheads_k, new, headdim) pass x.transpose(1, 2)." if heads_first else ""
                raise InvalidArgumentError(name, got, f"{want} {cache.dtype} on {cache.device}", hint)
            if new.requires_grad and torch.is_grad_enabled():
                hint = "Detach it, or append under torch.no_grad()."
                raise InvalidArgumentError(name, "requires_grad", "a tensor without: a cache keeps no graph", hint)
        for row, length in enumerate(self.lengths):
            if length + count > room:
                raise InvalidArgumentError("k", f"{count} keys after {length} of row {row}", f"at most {room} in all")
        for rows, length in self._rows():
            self.k[rows, length : length + count] = k[rows]
            self.v[rows, length : length + count] = v[rows]
        self._move(count)

    def drop(self, count: int) -> None:
        """Forget the last `count` keys of each row, as of tokens that were guessed wrong.

        Raises InvalidArgumentError for more than a row has, which it names.
        """
        self._check_count(count)
        self._move(-count)

    def keep_last(self, count: int) -> None:
        """Move the last `count` keys of each row to its beginning and forget those before: a window goes on there.

        Raises InvalidArgumentError for more than a row has, which it names.
        """
        self._check_count(count)
        for rows, length in self._rows():
            for cache in (self.k, self.v):
                kept = cache[rows, length - count : length]
                # What is read and what is written may not overlap.
                cache[rows, :count] = kept if 2 * count <= length else kept.clone()
        self.lengths = [count] * len(self.lengths)
        self.seqlens_k.fill_(count)

    def select(self, rows: Tensor) -> None:
        """Let row i hold what row rows[i] holds, for beams. rows: (batch,) integers on the device; another number of
        them becomes the batch, in new memory."""
        used = max(self.lengths)
        for name in ("k", "v"):
            cache: Tensor = getattr(self, name)
            held = cache[:, :used].index_select(0, rows)
            if held.shape[0] != cache.shape[0]:
                cache = _zeros((held.shape[0], *cache.shape[1:]), cache.dtype, cache.device)
                setattr(self, name, cache)
            cache[:, :used] = held
        if min(self.lengths) == used:
            self.lengths = [used] * rows.shape[0]  # known without asking the device
        else:
            self.lengths = [self.lengths[row] for row in rows.tolist()]
        self.seqlens_k = self.seqlens_k.index_select(0, rows)

    def reset(self, row: int) -> None:
        """Forget the keys of a row, which are cleared. Raises InvalidArgumentError for a row that is not there."""
        if not 0 <= row < len(self.lengths):
            raise InvalidArgumentError("row", str(row), f"0 to {len(self.lengths) - 1}")
        self.k[row], self.v[row] = 0, 0
        self.lengths[row] = 0
        self.seqlens_k[row] = 0

    def _rows(self) -> list[tuple[int | slice, int]]:
        """What to write at once, and after how many keys: all rows, where they have as many."""
        if min(self.lengths) == max(self.lengths):
            return [(slice(None), self.lengths[0])]
        return list(enumerate(self.lengths))

    def _check_count(self, count: int) -> None:
        for row, length in enumerate(self.lengths):
            if not 0 <= count <= length:
                raise InvalidArgumentError("count", str(count), f"0 to {length}, the keys of row {row}")

    def _move(self, count: int) -> None:
        self.lengths = [length + count for length in self.lengths]
        self.seqlens_k += count


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """shape: (batch, max_seqlen, nheads_k, headdim). Their order in memory follows the device."""
    if device.type == "cpu":
        batch, max_seqlen, nheads_k, headdim = shape
        return torch.zeros(batch, nheads_k, max_seqlen, headdim, dtype=dtype, device=device).transpose(1, 2)
    return torch.zeros(shape, dtype=dtype, device=device)
