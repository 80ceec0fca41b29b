"""The function that transformers calls to make the mask of a forward pass, once for all layers of a kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.compiler import is_compiling
from transformers import masking_utils
from transformers.masking_utils import causal_mask_function, sdpa_mask

from xattn.integrations.transformers.described_mask import DescribedMask

# Of transformers >= 5.
_BIDIRECTIONAL = getattr(masking_utils, "bidirectional_mask_function", None)
# The code of the closures that transformers makes for a causal sliding window.
_AND = masking_utils.and_masks(causal_mask_function).__code__
_SLIDING = masking_utils.sliding_window_overlay(1).__code__
# And for packed sequences, whose positions begin anew: of transformers >= 5.
_APART = masking_utils.packed_sequence_mask_function(torch.zeros(0)).__code__
_REMAPPED = (
    masking_utils.remap_positions_for_packed_sequence(causal_mask_function, torch.zeros(0)).__code__
    if hasattr(masking_utils, "remap_positions_for_packed_sequence")
    else None
)


def attention_mask(
    *,
    batch_size: int,
    kv_length: int,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str | None = None,
    **others: Any,
) -> DescribedMask:
    """The mask for `attention_forward`: a `DescribedMask`, which tells the causal diagonal, the window and the padding
    apart and builds nothing of size seqlen_q x seqlen_k for them.

    Packed sequences are described by where each begins. Chunks, image tokens and functions of a user's own are known to
    transformers as closures alone: these are made real once, for all layers. Never None, even where callers allow it:
    nothing is left for the layer to guess.

    The arguments are those that transformers gives to every mask function (`transformers.masking_utils.sdpa_mask`)."""
    seqlen_q, offset = _queries(others)
    if device is None:  # transformers < 5
        device = others["cache_position"].device
    shape = (batch_size, 1, seqlen_q, kv_length)
    if mask_function is _BIDIRECTIONAL:
        return DescribedMask.of(shape, device, visible=_padding(attention_mask, kv_length, kv_offset, kv_length))
    mask_function, sequences = _sequences(mask_function, shape, offset, attention_mask)
    if sequences is not None:
        return DescribedMask.of(shape, device, 0, _window(mask_function), None, sequences)
    window = _window(mask_function)
    known = mask_function is causal_mask_function or window is not None
    if known and isinstance(offset, int):
        own = offset - kv_offset
        padding = _padding(attention_mask, kv_length, kv_offset, own + seqlen_q)
        return DescribedMask.of(shape, device, own, window, padding)
    if known and isinstance(offset, Tensor):
        # One query, at a place that the device alone knows (a static cache): its keys, without waiting for it.
        key = torch.arange(kv_length, device=device) + kv_offset
        visible = key <= offset
        if window is not None:
            visible = visible & (key > offset - window)
        visible = visible[None, None, None]
        padding = _padding(attention_mask, kv_length, kv_offset, None)
        return DescribedMask.of(shape, device, visible=visible if padding is None else visible & padding)
    made: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        kv_length=kv_length,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        device=device,
        **{**others, "allow_is_causal_skip": False},
    )
    # None where a bidirectional window is as long as the text.
    return DescribedMask.of(shape, device, visible=made)


def _queries(others: dict[str, Any]) -> tuple[int, int | Tensor | None]:
    """(how many, the position of the first): a tensor for one query where reading it would wait for a device or break a
    graph; None where the positions are not consecutive, or are more than one and cannot be read."""
    positions: Tensor | None = others.get("cache_position")  # transformers < 5.4
    if positions is None:
        seqlen_q, offset = others["q_length"], others.get("q_offset", 0)
    else:
        seqlen_q, offset = positions.shape[0], positions[0]
    if not isinstance(offset, Tensor) or (seqlen_q == 1 and (positions is None or offset.device.type != "cpu")):
        return seqlen_q, offset
    if _unreadable(offset):
        return seqlen_q, offset if seqlen_q == 1 else None
    if positions is not None and not bool((positions.diff() == 1).all()):
        return seqlen_q, None
    return seqlen_q, int(offset)


def _padding(attention_mask: Tensor | None, kv_length: int, kv_offset: int, end: int | None) -> Tensor | None:
    """(batch, 1, 1, kv_length) of the caller's (batch, tokens), True for a token. None where there is no padding before
    key `end`: those behind are hidden by causality. end=None: not looked into."""
    if attention_mask is None:
        return None
    padding = attention_mask[:, kv_offset : kv_offset + kv_length]
    if padding.shape[1] < kv_length:
        padding = torch.nn.functional.pad(padding, (0, kv_length - padding.shape[1]))
    if end is not None and not _unreadable(padding) and bool(padding[:, : max(0, end)].all()):
        return None
    return padding[:, None, None]


def _unreadable(tensor: Tensor) -> bool:
    """Whether its values are not known yet: in a traced graph, or a captured one."""
    if is_compiling() or isinstance(tensor, FakeTensor):
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _sequences(
    mask_function: Any, shape: tuple[int, ...], offset: Any, attention_mask: Tensor | None
) -> tuple[Any, tuple[Tensor, int] | None]:
    """(the causal function or window that holds in each packed sequence, where they lie) of packed sequences without
    padding; the function alone where there is one sequence a row, which releases before 5 call packed as well; of
    anything else what was given, and None.

    Positions rise by one in each sequence, so that it does not matter that some releases count them anew."""
    batch, _, seqlen_q, kv_length = shape
    parts = _parts(mask_function)
    if parts is None or getattr(parts[1], "__code__", None) is not _APART:
        return mask_function, None
    function = parts[0]
    if getattr(function, "__code__", None) is _REMAPPED:
        function = inspect.getclosurevars(function).nonlocals["mask_function"]
    ids: Tensor = parts[1].__closure__[0].cell_contents
    known = function is causal_mask_function or _window(function) is not None
    if not known or _unreadable(ids) or ids.shape != (batch, kv_length) or seqlen_q != kv_length or offset != 0:
        return mask_function, None
    begins = torch.nn.functional.pad(ids.diff() != 0, (1, 0), value=True).flatten().nonzero().flatten()
    if begins.shape[0] == batch:
        return function, None
    if _padding(attention_mask, kv_length, 0, kv_length) is not None:
        return mask_function, None
    cu_seqlens = torch.nn.functional.pad(begins, (0, 1), value=batch * kv_length).to(torch.int32)
    return function, (cu_seqlens, int(cu_seqlens.diff().max()))


def _parts(mask_function: Any) -> tuple[Any, ...] | None:
    """The two functions of a pair that transformers joined by "and"."""
    if is_compiling() or getattr(mask_function, "__code__", None) is not _AND:
        return None
    parts: tuple[Any, ...] = mask_function.__closure__[0].cell_contents
    return parts if len(parts) == 2 else None


def _window(mask_function: Any) -> int | None:
    """W of a function that is exactly a causal window of W keys, None of any other.

    `local_size`, which comes beside the function, does not say it: chunks have it too. torch.compile cannot look into
    closures: there the answer is None.
    """
    parts = _parts(mask_function)
    if parts is None or parts[1] is not causal_mask_function or getattr(parts[0], "__code__", None) is not _SLIDING:
        return None
    window: int = parts[0].__closure__[0].cell_contents
    return window
