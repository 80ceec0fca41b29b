"""Lengths of packed sequences: bounds, buckets, and the values that cu_seqlens may hold."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks
from xattn.plugin.symbolic import bucket, holds, is_int32
from xattn.plugin.tensors import is_plain


def bucket_of(size: Any) -> object:
    """The bucket of a bound, or of the number of sequences of cu_seqlens; what is neither stays as it is, for `prepare`
    to name."""
    if isinstance(size, Tensor):
        size = size.numel() - 1
    return bucket(size) if isinstance(size, int) and not isinstance(size, bool) else size


def are_cu_seqlens(*tensors: Any, device: torch.device | None = None) -> bool:
    """Whether they are sums of lengths, on the device where one is named."""
    return all(
        checks.has_rank(each, 1) and each.dtype == torch.int32 and len(each) > 0 and device in (None, each.device)
        for each in tensors
    )


def bound(name: str, given: int | None, cu_seqlens: Tensor) -> int:
    """The upper bound of the lengths: as given, or read from cu_seqlens.

    Reading is free on the CPU, and one sync on a device: an error while a CUDA graph is captured or torch.compile
    traces, where it could not be had.
    """
    if given is not None:
        return given_bound(name, given)
    if holds(cu_seqlens.numel() < 2):
        return 0
    return _read(name, cu_seqlens).diff().max().item()  # type: ignore[return-value]


def bound_of_lengths(name: str, given: int | None, seqlens: Tensor) -> int:
    """As `bound`, of (batch,) lengths themselves."""
    if given is not None:
        return given_bound(name, given)
    if holds(seqlens.numel() == 0):
        return 0
    return _read(name, seqlens).max().item()  # type: ignore[return-value]


def given_bound(name: str, given: Any) -> int:
    """A bound that the caller gave."""
    if is_int32(given) and (isinstance(given, torch.SymInt) or given >= 0):
        return given  # type: ignore[no-any-return]
    raise InvalidArgumentError(name, checks.short(given), "an int >= 0 of 32 bits, or None to read it from the lengths")


def _read(name: str, lengths: Tensor) -> Tensor:
    """The tensor, whose values can be read."""
    if (where := _where_none_can_be_read(lengths)) is not None:
        raise InvalidArgumentError(name, f"None {where}", "an int", "There the lengths cannot be read.")
    return lengths


def _where_none_can_be_read(lengths: Tensor) -> str | None:
    if is_compiling():
        return None if lengths.device.type == "cpu" else "under torch.compile"
    if lengths.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "while a CUDA graph is captured"
    # A fake tensor, one of the meta device, one inside vmap.
    return None if is_plain(lengths) and not lengths.is_meta else "for tensors without values"


def check_cu_seqlens(name: str, cu_seqlens: Any, q: Tensor) -> None:
    """Type, device, dtype and shape."""
    checks.check_tensor(name, cu_seqlens)
    checks.check_option(name, cu_seqlens, q, "int32", {})
    if cu_seqlens.dim() != 1 or holds(cu_seqlens.shape[0] < 1):
        want = "(batch + 1,), beginning with 0"
        raise InvalidArgumentError(name, f"shape {tuple(cu_seqlens.shape)}", want)


def check_lengths(name: str, cu_seqlens: Tensor, packed: Tensor, bound_name: str, bound: int | None) -> None:
    """The values: from 0, not decreasing, at most the tokens of the packed tensor, and no length above its bound."""
    check_starts(name, cu_seqlens.tolist(), packed, bound_name, bound)


def check_starts(name: str, values: list[int], packed: Tensor, bound_name: str, bound: int | None) -> None:
    """`check_lengths` of values that the host has."""
    if values[0] != 0:
        hint = "Lengths become their sums by F.pad(lengths.cumsum(0), (1, 0)).int()."
        raise InvalidArgumentError(name, f"{values[0]} as its first value", "0", hint)
    for i, (start, end) in enumerate(itertools.pairwise(values)):
        if end < start:
            raise InvalidArgumentError(name, f"{start}, {end} at {i}", "values that do not decrease")
        if isinstance(bound, int) and end - start > bound:
            want = f"at least {end - start}, the length of sequence {i}"
            raise InvalidArgumentError(bound_name, str(bound), want, "None reads it from the lengths.")
    if values[-1] > packed.shape[0]:
        hint = ""
        if values[-1] == packed.shape[1]:
            hint = "Of a (nheads, tokens, headdim) tensor pass x.transpose(0, 1), which copies nothing."
        want = f"at most {packed.shape[0]}, the packed tokens"
        raise InvalidArgumentError(name, f"{values[-1]} as its last value", want, hint)
