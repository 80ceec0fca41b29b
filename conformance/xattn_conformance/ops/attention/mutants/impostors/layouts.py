"""Impostors that read their arguments wrongly: strides, alignment, other dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from xattn_conformance.mutants.impostor import Where
from xattn_conformance.mutants.impostor_parts import Reading, dense, misreading, reread, varied


def as_contiguous(name: str) -> Reading:
    def read(arguments: dict[str, Any]) -> None:
        tensor = arguments[name]
        if not tensor.is_contiguous():
            arguments[name] = reread(tensor, dense(tensor), tensor.storage_offset())

    return read


def aligned_down(arguments: dict[str, Any]) -> None:
    q = arguments["q"]
    arguments["q"] = reread(q, q.stride(), q.storage_offset() // 8 * 8)


def with_option(name: str, *variations: str) -> Where:
    return Where(variations, lambda case: name in case.options)


def int64_as_int32(arguments: dict[str, Any]) -> None:
    lengths = arguments["seqlens_k"]
    if lengths.dtype == torch.int64:
        halves = lengths.contiguous().view(torch.int32)[: lengths.shape[0]]
        arguments["seqlens_k"] = halves.clamp(0, arguments["k"].shape[1]).contiguous()


def lengths_without_stride(arguments: dict[str, Any]) -> None:
    as_contiguous("seqlens_k")(arguments)
    arguments["seqlens_k"] = arguments["seqlens_k"].clamp(0, arguments["k"].shape[1])


def dropped(name: str, dtype: Callable[[dict[str, Any]], torch.dtype]) -> Reading:
    def read(arguments: dict[str, Any]) -> None:
        if arguments[name].dtype != dtype(arguments):
            arguments[name] = torch.zeros_like(arguments[name])

    return read


LAYOUTS = (
    misreading(
        "q-as-contiguous", "q is read as if it were contiguous", as_contiguous("q"), varied("strides", "packed")
    ),
    misreading("k-as-contiguous", "k is read as if it were contiguous", as_contiguous("k"), varied("turned", "packed")),
    misreading(
        "v-as-contiguous", "v is read as if it were contiguous", as_contiguous("v"), varied("strides", "packed")
    ),
    misreading(
        "bias-as-contiguous",
        "a bias is read as if it were contiguous",
        as_contiguous("bias"),
        with_option("bias", "turned"),
    ),
    misreading(
        "mask-as-contiguous",
        "a mask is read as if it were contiguous",
        as_contiguous("mask"),
        with_option("mask", "turned"),
    ),
    misreading("q-aligned-down", "q is loaded from an aligned address before it", aligned_down, varied("misaligned")),
    misreading(
        "stride-0-as-dense",
        "a stride of 0 is taken for a dense one",
        as_contiguous("k"),
        varied("expanded", also=lambda case: case.family == "shared"),
    ),
    misreading(
        "lengths-int32", "seqlens_k in int64 is read as int32", int64_as_int32, with_option("seqlens_k", "types")
    ),
    misreading(
        "lengths-dense", "the stride of seqlens_k is ignored", lengths_without_stride, with_option("seqlens_k", "types")
    ),
    misreading(
        "sinks-other-dtype",
        "sinks that are not float32 are dropped",
        dropped("sinks", lambda arguments: torch.float32),
        with_option("sinks", "types"),
    ),
    misreading(
        "bias-other-dtype",
        "a bias that is not of q's dtype is dropped",
        dropped("bias", lambda arguments: arguments["q"].dtype),
        with_option("bias", "types"),
    ),
)
