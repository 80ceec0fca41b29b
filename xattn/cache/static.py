"""A padded cache of one layer: room for as many keys in each batch row."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.cache.sizes import check_sizes
from xattn.errors import InvalidArgumentError


class StaticKVCache:
    """Keys and values at fixed addresses, for `xattn.attention(q, cache.k, cache.v, seqlens_k=cache.seqlens_k)`.

    k, v: (batch, max_seqlen, nheads_k, headdim or headdim_v), zeros at first. seqlens_k: (batch,) int32, on the device.
    lengths: the same numbers on the host.
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
        self.k = torch.zeros(batch, max_seqlen, nheads_k, headdim, dtype=dtype, device=device)
        self.v = torch.zeros(
            batch, max_seqlen, nheads_k, headdim if headdim_v is None else headdim_v, dtype=dtype, device=device
        )
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
        for row, length in enumerate(self.lengths):
            self.k[row, length : length + count] = k[row]
            self.v[row, length : length + count] = v[row]
        self._set([length + count for length in self.lengths])

    def reset(self, row: int) -> None:
        """Forget the keys of a row, which are cleared. Raises InvalidArgumentError for a row that is not there."""
        if not 0 <= row < len(self.lengths):
            raise InvalidArgumentError("row", str(row), f"0 to {len(self.lengths) - 1}")
        self.k[row], self.v[row] = 0, 0
        self._set([0 if i == row else length for i, length in enumerate(self.lengths)])

    def _set(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.seqlens_k.copy_(torch.tensor(lengths, dtype=torch.int32))
