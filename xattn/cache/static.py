"""A padded cache of one layer: room for as many keys in each batch row."""

from __future__ import annotations

import torch
from torch import Tensor

import xattn
from xattn.cache.sizes import OF_PAGES, ScaleOf, Scales, check_scale_of, check_sizes, scale_shape
from xattn.errors import InvalidArgumentError
from xattn.plugin.quantised import INT4, QMAX, columns
from xattn.plugin.storage import PagedBatch


class StaticKVCache:
    """Keys and values at fixed addresses, for `xattn.attention(q, cache.k, cache.v, seqlens_k=cache.seqlens_k)`.

    k, v: (batch, max_seqlen, nheads_k, headdim or headdim_v), zeros at first. Their order in memory follows the device:
    one head's keys side by side on a CPU, which reads them up to twice as fast so, the order of the sizes elsewhere, as
    vendors' kernels want it. seqlens_k: (batch,) int32, on the device. lengths: the same numbers on the host.

    Quantised with the dtypes and scale_of of `PagedKVCache`, a row in place of a block: k_scale, v_scale. Then `append`
    quantises, and a row is a page to `paged_attention`:

        xattn.paged_attention(q.flatten(0, 1), cache.k, cache.v, cache.paged(q.shape[1]), **cache.scales())
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
        scale_of: ScaleOf = "token_head",
        device: torch.device | str = "cpu",
    ) -> None:
        check_sizes(dtype, batch=batch, max_seqlen=max_seqlen, nheads_k=nheads_k, headdim=headdim, headdim_v=headdim_v)
        check_scale_of(scale_of)
        sizes = batch, max_seqlen, nheads_k
        self.k, self.v = (
            _zeros((*sizes, columns(each, dtype)), dtype, torch.device(device))
            for each in (headdim, headdim if headdim_v is None else headdim_v)
        )
        self.scale_of = scale_of
        self.k_scale, self.v_scale = (
            torch.ones(scale_shape(scale_of, cache), device=device) if dtype in QMAX else None
            for cache in (self.k, self.v)
        )
        self.seqlens_k = torch.zeros(batch, dtype=torch.int32, device=device)
        self.lengths = [0] * batch

    def append(self, k: Tensor, v: Tensor) -> None:
        """Put (batch, new, nheads_k, headdim) keys, and values, after those that each row has.

        Raises InvalidArgumentError for other sizes, another dtype or device, what wants a gradient, and for a row
        without room, which it names; nothing was written then. A quantised cache takes any floating-point dtype that k
        and v share.
        """
        count, room = k.shape[1] if isinstance(k, Tensor) and k.dim() == 4 else 0, self.k.shape[1]
        scales = self.scales()
        for name, new, cache in (("k", k, self.k), ("v", v, self.v)):
            if not isinstance(new, Tensor):
                raise InvalidArgumentError(name, type(new).__name__, "a torch.Tensor")
            headdim = cache.shape[3] * (2 if cache.dtype == INT4 else 1)
            want, dtype = (cache.shape[0], count, cache.shape[2], headdim), k.dtype if scales else cache.dtype
            if (tuple(new.shape), new.dtype, new.device) != (want, dtype, cache.device):
                got = f"{tuple(new.shape)} {new.dtype} on {new.device}"
                heads_first = (tuple(new.shape[:2]), new.shape[3:]) == ((want[0], want[2]), want[3:])
                hint = "Of (batch, nheads_k, new, headdim) pass x.transpose(1, 2)." if heads_first else ""
                raise InvalidArgumentError(name, got, f"{want} {dtype} on {cache.device}", hint)
            if new.requires_grad and torch.is_grad_enabled():
                hint = "Detach it, or append under torch.no_grad()."
                raise InvalidArgumentError(name, "requires_grad", "a tensor without: a cache keeps no graph", hint)
        for row, length in enumerate(self.lengths):
            if length + count > room:
                raise InvalidArgumentError("k", f"{count} keys after {length} of row {row}", f"at most {room} in all")
        if scales:
            slots = [row * room + length + i for row, length in enumerate(self.lengths) for i in range(count)]
            where = torch.tensor(slots, dtype=torch.int64, device=k.device)
            xattn.write_kv(k.flatten(0, 1), v.flatten(0, 1), self.k, self.v, where, **scales)
        else:
            for rows, length in self._rows():
                self.k[rows, length : length + count] = k[rows]
                self.v[rows, length : length + count] = v[rows]
        self._move(count)

    def scales(self) -> Scales:
        """k_scale and v_scale, as keywords of `paged_attention`; none of what is not quantised."""
        if self.k_scale is None or self.v_scale is None:
            return {}
        return {"k_scale": self.k_scale, "v_scale": self.v_scale}

    def paged(self, queries: int = 1) -> PagedBatch:
        """The rows as pages of max_seqlen keys, for so many queries of each row, the last of its keys being the last
        query's own."""
        batch, device = len(self.lengths), self.k.device
        table = torch.arange(batch, dtype=torch.int32, device=device).unsqueeze(1)
        starts = None
        if queries != 1:
            starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * queries
        longest = max(self.lengths)
        return PagedBatch(table, self.seqlens_k, starts, max_seqlen_q=queries, max_seqlen_k=longest)

    def drop(self, count: int) -> None:
        """Forget the last `count` keys of each row, as of tokens that were guessed wrong.

        Raises InvalidArgumentError for more than a row has, which it names.
        """
        self._check_count(count)
        self._move(-count)

    def keep_last(self, count: int) -> None:
        """Move the last `count` keys of each row to its beginning and forget those before: a window goes on there.

        Raises InvalidArgumentError for more than a row has, which it names, and for a quantised cache.
        """
        self._check_plain("count")
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
        them becomes the batch, in new memory. Raises InvalidArgumentError for a quantised cache."""
        self._check_plain("rows")
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
        if self.scale_of in OF_PAGES:
            for scale in (self.k_scale, self.v_scale):
                if scale is not None:
                    scale[row] = 1
        self.lengths[row] = 0
        self.seqlens_k[row] = 0

    def _rows(self) -> list[tuple[int | slice, int]]:
        """What to write at once, and after how many keys: all rows, where they have as many."""
        if min(self.lengths) == max(self.lengths):
            return [(slice(None), self.lengths[0])]
        return list(enumerate(self.lengths))

    def _check_plain(self, name: str) -> None:
        if self.k.dtype in QMAX:
            raise InvalidArgumentError(name, f"a move of {self.k.dtype} keys, whose scales stay", "a cache of floats")

    def _check_count(self, count: int) -> None:
        for row, length in enumerate(self.lengths):
            if not 0 <= count <= length:
                raise InvalidArgumentError("count", str(count), f"0 to {length}, the keys of row {row}")

    def _move(self, count: int) -> None:
        self.lengths = [length + count for length in self.lengths]
        self.seqlens_k += count


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """shape: (batch, max_seqlen, nheads_k, headdim). Their order in memory follows the device."""
    if device.type == "cpu" and dtype not in QMAX:  # quantised ones are read by pages
        batch, max_seqlen, nheads_k, headdim = shape
        return torch.zeros(batch, nheads_k, max_seqlen, headdim, dtype=dtype, device=device).transpose(1, 2)
    return torch.zeros(shape, dtype=dtype, device=device)
