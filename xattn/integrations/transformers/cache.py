"""A cache of transformers on `StaticKVCache`: a step writes its own keys and values, and reads views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from xattn.cache import StaticKVCache
from xattn.errors import InvalidArgumentError


def make(model: PreTrainedModel, max_seqlen: int) -> Cache:
    takes_one = getattr(model, "_supports_default_dynamic_cache", None)  # of models that generate
    if takes_one is not None and not takes_one():
        got = f"{type(model).__name__}, which has a cache of its own"
        raise InvalidArgumentError("model", got, "a model that takes transformers' DynamicCache")
    cache = DynamicCache(config=model.config)
    cache.layers = [_own(layer, max_seqlen) for layer in cache.layers]
    if model.config.is_encoder_decoder:
        # The encoder's keys are written once.
        return EncoderDecoderCache(cache, DynamicCache(config=model.config))
    return cache


def _own(layer: Any, max_seqlen: int) -> Any:
    """Layers that are more than keys and values, states of linear attention for example, stay as they are."""
    if type(layer) is DynamicLayer:
        return KVLayer(max_seqlen)
    if type(layer) is DynamicSlidingWindowLayer:
        return SlidingKVLayer(max_seqlen, layer.sliding_window)
    return layer


class KVLayer(CacheLayerMixin):
    """Keys and values of one attention layer, in memory that stays where it is.

    keys, values: (batch, nheads_k, cached, headdim or headdim_v), views of what is cached.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, max_seqlen: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_seqlen = max_seqlen
        self.cache: StaticKVCache | None = None
        self.seqlen = 0  # tokens seen, of which a sliding layer forgets the oldest

    @property
    def room(self) -> int:
        return self.max_seqlen

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._hold(key_states[:, :, :0], value_states[:, :, :0])
        self.device = key_states.device

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new (batch, nheads_k, new, headdim) keys, and values. Returns views of all that a query may see."""
        if self.cache is None:
            self.lazy_initialization(key_states, value_states)
        self._check_room(key_states.shape[2])
        self._append(key_states, value_states)
        self.seqlen += key_states.shape[2]
        return self._held()

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        return self.seqlen + _count(query_length), 0

    def get_seq_length(self) -> int:
        return self.seqlen

    def get_max_length(self) -> int:
        return self.max_seqlen

    get_max_cache_shape = get_max_length  # transformers < 5.17

    def reset(self) -> None:
        if self.cache is not None:
            self._drop(self._held()[0].shape[2])
        self.seqlen = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens. A positive number is of those to keep, as before 5.24."""
        count = -tokens_to_remove if tokens_to_remove <= 0 else max(0, self.seqlen - tokens_to_remove)
        if self.cache is not None:
            self._check_crop(count)
            self._drop(count)
            self.seqlen -= count

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.cache is not None:
            rows = torch.arange(self._held()[0].shape[0], device=self.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """indices: of the rows, as integers or as a bool for each."""
        if self.cache is not None:
            rows = indices.to(self.device)
            self.cache.select(rows.nonzero().flatten() if rows.dtype == torch.bool else rows)
            self._view()

    def _check_crop(self, count: int) -> None:
        """`StaticKVCache.drop` checks what a layer needs that forgets nothing."""

    def _check_room(self, count: int) -> None:
        if self.seqlen + count > self.max_seqlen:
            hint = "make_cache(model, max_seqlen) wants room for the prompt and all new tokens."
            raise InvalidArgumentError(
                "max_seqlen", str(self.max_seqlen), f"at least {self.seqlen + count}, the tokens so far", hint
            )

    def _held(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None  # noqa: PT018
        return self.keys, self.values

    def _append(self, keys: Tensor, values: Tensor) -> None:
        assert self.cache is not None
        self.cache.append(keys.transpose(1, 2), values.transpose(1, 2))
        self._view()

    def _drop(self, count: int) -> None:
        assert self.cache is not None
        self.cache.drop(count)
        self._view()

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        """Begin anew with other keys and values, of as many rows as these have."""
        batch, nheads_k, count, headdim = keys.shape
        self.cache = StaticKVCache(
            batch, max(self.room, count), nheads_k, headdim, values.shape[3], dtype=keys.dtype, device=keys.device
        )
        self._append(keys, values)
        self.is_initialized = True

    def _view(self) -> None:
        assert self.cache is not None
        end = self.cache.lengths[0]
        self.keys, self.values = (x[:, :end].transpose(1, 2) for x in (self.cache.k, self.cache.v))


class SlidingKVLayer(KVLayer):
    """The same for a layer whose queries see the last `sliding_window` keys.

    It has room for twice the window, and moves the window to the front when that is full: one key a token on average.
    A prompt that is longer is handed back as it came; its last keys are kept.
    """

    is_sliding = True

    def __init__(self, max_seqlen: int, sliding_window: int) -> None:
        super().__init__(max_seqlen)
        self.sliding_window = sliding_window
        self.record_past = False

    @property
    def room(self) -> int:
        return self.max_seqlen if self.record_past else min(self.max_seqlen, 2 * self.sliding_window)

    def activate_past_recording(self) -> None:
        """Forget nothing from now on: `crop` may go back any number of tokens."""
        self.record_past = True
        if self.cache is not None and self._size() < self.room:
            self._hold(*self._held())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            self.lazy_initialization(key_states, value_states)
        count, past = key_states.shape[2], self._past()
        self._check_room(count)
        self.seqlen += count
        keys, values = self._held()
        held, room = keys.shape[2], self._size()
        if past + count > room:
            if past > 0:
                keys, values = (x[:, :, held - past :] for x in (keys, values))
                key_states, value_states = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
            first = past + count - self._past()
            self._drop(held)
            self._append(key_states[:, :, first:], value_states[:, :, first:])
            return key_states, value_states
        if held + count > room:
            assert self.cache is not None
            self.cache.keep_last(past)
        self._append(key_states, value_states)
        keys, values = self._held()
        first = keys.shape[2] - past - count
        return keys[:, :, first:], values[:, :, first:]

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        past = self._past()
        return past + _count(query_length), self.seqlen - past

    def _check_crop(self, count: int) -> None:
        kept = min(self.seqlen - count, self.sliding_window - 1)
        held = self._held()[0].shape[2]
        if held - count < kept:
            got = f"a crop by {count} of {self.seqlen} tokens, {held} of them still there"
            hint = "Call cache.activate_past_recording() before, or crop by what the last call added at most."
            raise InvalidArgumentError("tokens_to_remove", got, f"{kept} keys before them", hint)

    def _size(self) -> int:
        assert self.cache is not None
        return self.cache.k.shape[1]

    def _past(self) -> int:
        """How many of the cached keys the next query may see."""
        return min(self.seqlen, self.sliding_window - 1)


def _count(query_length: int | Tensor) -> int:
    """transformers < 5 gives the positions of the queries."""
    return query_length if isinstance(query_length, int) else query_length.shape[0]
