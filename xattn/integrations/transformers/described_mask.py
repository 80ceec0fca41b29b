"""A mask that says who sees whom instead of holding it, in the shape of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError

# What concerns the mask's size and kind alone.
_OUTSIDE = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.requires_grad.__set__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.stride,
    Tensor.is_floating_point,
    torch.is_floating_point,
}

# Some models compute attention by themselves in one part and call an implementation in another. There they add the
# mask to their scores, for which bool + float is legal in torch and silently wrong.
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}


class DescribedMask(Tensor):
    """A bool mask (batch, 1, seqlen_q, seqlen_k), True where a query may attend, that takes one byte for its shape.

    offset: the key that query 0 is aligned with: key j is visible to query i when j <= i + offset. None: no
        causality.
    window: with an offset, a query sees the last `window` keys up to its own: j > i + offset - window. None: all.
    visible: bool (batch or 1, 1, seqlen_q or 1, seqlen_k): what else must hold, padding for example. None: nothing.
    sequences: (cu_seqlens, length of the longest) of packed sequences: each sees itself alone. cu_seqlens: int32, over
        the rows of all the batch, one after the other; seqlen_q = seqlen_k, offset 0. None: not packed.

    transformers knows masks by their shape (a tensor of 4 dimensions is handed on as it is), cuts queries out of them,
    and moves them to other devices: all of this the description can do. A sum with a float tensor gets the mask that is
    meant there, 0 where a query may attend and the lowest number elsewhere. Any other operation gets the real bool
    tensor, made for it. A product with floats raises InvalidArgumentError, as does a change in place.
    """

    offset: int | None
    window: int | None
    visible: Tensor | None
    sequences: tuple[Tensor, int] | None
    sizes: tuple[int, int]  # (seqlen_q, seqlen_k), which costs less to look up than the shape of a subclass

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        device: torch.device | str,
        offset: int | None = None,
        window: int | None = None,
        visible: Tensor | None = None,
        sequences: tuple[Tensor, int] | None = None,
    ) -> DescribedMask:
        # as_subclass rather than a constructor, and attributes afterwards: torch.compile can trace this.
        mask = torch.zeros((), dtype=torch.bool, device=device).expand(*shape).as_subclass(cls)
        mask.offset = offset
        mask.window = window
        mask.visible = visible
        mask.sequences = sequences
        mask.sizes = (shape[2], shape[3])
        return mask

    def tensor(self) -> Tensor:
        """The tensor that it stands for."""
        batch, heads, seqlen_q, seqlen_k = self.shape
        seen = torch.ones((), dtype=torch.bool, device=self.device)
        if self.offset is not None:
            own = torch.arange(seqlen_q, device=self.device)[:, None] + self.offset
            key = torch.arange(seqlen_k, device=self.device)
            seen = key <= own
            if self.window is not None:
                seen = seen & (key > own - self.window)
        if self.visible is not None:
            seen = seen & self.visible
        if self.sequences is not None:
            rows = torch.arange(batch * seqlen_q, device=self.device, dtype=torch.int32)
            own = torch.searchsorted(self.sequences[0], rows, right=True).unflatten(0, (batch, seqlen_q))
            seen = seen & (own[:, None, :, None] == own[:, None, None, :])
        return seen.expand(batch, heads, seqlen_q, seqlen_k)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _OUTSIDE:
                return func(*args, **kwargs)
            kept = _kept(func, args, kwargs)
            if kept is not None:
                return kept
            _check(func.__name__, args, kwargs)
            if func.__name__ in _SUMS and len(args) == 2:
                return func(*_summands(*args), **kwargs)
            return func(*_real(args), **_real(kwargs))


def _kept(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> DescribedMask | None:
    """The result as a description, where the operation allows one."""
    mask = args[0] if args else None
    if not isinstance(mask, DescribedMask):
        return None
    if func is Tensor.detach or func is Tensor.contiguous:
        return mask
    if func is Tensor.__getitem__:
        return _cut(mask, args[1])
    if func is Tensor.to:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args[1:], **kwargs)
        if dtype in (None, torch.bool):
            device = mask.device if device is None else device
            visible = mask.visible if mask.visible is None else mask.visible.to(device, non_blocking=non_blocking)
            sequences = mask.sequences
            if sequences is not None:
                sequences = (sequences[0].to(device, non_blocking=non_blocking), sequences[1])
            return DescribedMask.of(mask.shape, device, mask.offset, mask.window, visible, sequences)
    return None


def _cut(mask: DescribedMask, index: Any) -> DescribedMask | None:
    """mask[:, :, a:b, c:d]."""
    if not isinstance(index, tuple) or len(index) != 4 or not all(isinstance(item, slice) for item in index):
        return None
    if index[0] != slice(None) or index[1] != slice(None) or index[2].step or index[3].step:
        return None
    batch, heads, seqlen_q, seqlen_k = mask.shape
    first_q, end_q, _ = index[2].indices(seqlen_q)
    first_k, end_k, _ = index[3].indices(seqlen_k)
    if (first_q, end_q, first_k, end_k) == (0, seqlen_q, 0, seqlen_k):
        return mask
    if mask.sequences is not None:
        return None
    offset = None if mask.offset is None else mask.offset + first_q - first_k
    visible = mask.visible
    if visible is not None:
        visible = visible[..., first_k:end_k] if visible.shape[2] == 1 else visible[..., first_q:end_q, first_k:end_k]
    shape = (batch, heads, max(0, end_q - first_q), max(0, end_k - first_k))
    return DescribedMask.of(shape, mask.device, offset, mask.window, visible)


def _real(item: Any) -> Any:
    if isinstance(item, DescribedMask):
        return item.tensor()
    if isinstance(item, (tuple, list)):
        return type(item)(_real(part) for part in item)
    if isinstance(item, dict):
        return {name: _real(part) for name, part in item.items()}
    return item


def _check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in _PRODUCTS and any(_is_float(item) for item in (*args, *kwargs.values())):
        hint = 'A module of this model computes attention by itself. Use attn_implementation="eager".'
        raise InvalidArgumentError("attention_mask", "a product with floats", "a bool mask", hint)
    in_place = name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))
    if in_place and isinstance(args[0], DescribedMask):
        got = f"{name}, which changes it in place"
        raise InvalidArgumentError("attention_mask", got, "a copy to change", "Use attention_mask.clone() first.")


def _summands(one: Any, other: Any) -> tuple[Any, Any]:
    return _added(one, other), _added(other, one)


def _added(item: Any, other: Any) -> Any:
    if not isinstance(item, DescribedMask):
        return item
    if not (isinstance(other, Tensor) and other.dtype.is_floating_point):
        return item.tensor()
    return torch.zeros((), dtype=other.dtype, device=item.device).where(item.tensor(), torch.finfo(other.dtype).min)


def _is_float(item: Any) -> bool:
    return isinstance(item, float) or (isinstance(item, Tensor) and item.dtype.is_floating_point)
