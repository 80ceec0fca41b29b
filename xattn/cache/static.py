"""A cache of one tensor a layer, for a batch whose rows grow together."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import CacheFullError, InvalidArgumentError


class StaticKVCache:
    """Keys and values of a batch in tensors that stay where they are.

    batch, max_seqlen: rows, and places in each. nheads_k, headdim, headdim_v: of keys and values; headdim_v None is
    headdim. layers: each has tensors and a length of its own. dtype, device: of the tensors.
    """

    def __init__(
        self,
        batch: int,
        max_seqlen: int,
        nheads_k: int,
        headdim: int,
        headdim_v: int | None = None,
        *,
        layers: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        def zeros(columns: int) -> list[Tensor]:
            shape = (batch, max_seqlen, nheads_k, columns)
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

        self.k, self.v = zeros(headdim), zeros(headdim if headdim_v is None else headdim_v)
        self.lengths = [0] * layers

    def append(self, k: Tensor, v: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Write new keys and values, (batch, seqlen, nheads_k, headdim or headdim_v), behind those of a layer.

        Returns all that the layer has by now, as views: what `attention` takes, with causal=True as it is by default
        aligned. Raises CacheFullError where there is no room, InvalidArgumentError for other sizes or dtypes; nothing
        was written then.
        """
        start = self.lengths[layer]
        end = start + k.shape[1]
        for name, new, whole in (("k", k, self.k[layer]), ("v", v, self.v[layer])):
            want = (whole.shape[0], k.shape[1], *whole.shape[2:])
            if tuple(new.shape) != want:
                raise InvalidArgumentError(name, f"shape {tuple(new.shape)}", f"{want}")
            if new.dtype != whole.dtype:
                raise InvalidArgumentError(name, str(new.dtype), f"{whole.dtype}, the dtype of the cache")
        room = self.k[layer].shape[1]
        if end > room:
            raise CacheFullError(
                None, f"layer {layer} has {start} of {room} places, and {k.shape[1]} more are asked for"
            )
        self.k[layer][:, start:end] = k
        self.v[layer][:, start:end] = v
        self.lengths[layer] = end
        return self.k[layer][:, :end], self.v[layer][:, :end]

    def clear(self) -> None:
        """Forget all keys."""
        self.lengths = [0] * len(self.lengths)
