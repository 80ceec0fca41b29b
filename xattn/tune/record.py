"""Writes down the calls of a run, in the words that `xattn explain` and `xattn tune` take: XATTN_RECORD=calls.txt."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from xattn.dispatch import plans
from xattn.dispatch.op import Prepared
from xattn.dispatch.tables.kind import Kind, kind_of
from xattn.ops.table import OPS
from xattn.plugin.formats import FormattedCache
from xattn.plugin.request import dtype_name
from xattn.plugin.storage import PagedBatch

VARIABLE = "XATTN_RECORD"


class Recorder:
    """Adds a line to a file for each kind of call when it is first planned."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: set[Kind] = set()

    def __call__(self, prepared: Prepared) -> None:
        kind = kind_of(prepared.request)
        if kind is None or kind in self._seen:
            return
        self._seen.add(kind)
        words = words_of(prepared)
        if words is None:
            return
        try:
            # One write of one line, at the end of the file as it is then: several processes may have the same file.
            with open(self.path, "a") as file:
                file.write(words + "\n")
        except OSError as error:  # to record a run must not end it
            plans.on_plan = None
            warnings.warn(f"{VARIABLE}: {error}; no more calls are recorded", stacklevel=2)


def start() -> None:
    """Record from now on, where XATTN_RECORD says to."""
    plans.on_plan = Recorder(os.environ[VARIABLE])


def words_of(prepared: Prepared) -> str | None:
    """A call as its op's name and NAME=VALUE words; arguments that have their default value are left out. None for a
    call of caches in a format, for which there are no words."""
    if any(isinstance(each, FormattedCache) for each in prepared.tensors):
        return None
    op = OPS[prepared.request.op]
    parameters = inspect.signature(op.prepare).parameters
    words = [op.name]
    for name, value in _arguments(prepared, list(parameters)).items():
        default = parameters[name].default
        if isinstance(value, Tensor) or value != default:
            words.append(f"{name}={_text(value)}")
    return " ".join(words)


def _arguments(prepared: Prepared, names: list[str]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for place, (name, value) in enumerate(zip(names, prepared.tensors, strict=False)):
        if isinstance(value, PagedBatch):
            parts = ("block_table", "seqlens_k", "cu_seqlens_q", "max_seqlen_q", "max_seqlen_k")
            found.update((part, getattr(value, part)) for part in parts if part in names)
        else:
            found[name] = _cast(value, prepared.autocast) if place < prepared.cast else value
    if found.get("cu_seqlens_k") is found.get("cu_seqlens_q"):  # the caller gave one
        found.pop("cu_seqlens_k", None)
    return {**found, **prepared.given, **prepared.options}


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """As autocast will have it, with nothing computed."""
    if dtype is None or not isinstance(value, Tensor) or value.dtype == torch.float64:
        return value
    return torch.empty(value.shape, dtype=dtype, device="meta", requires_grad=value.requires_grad)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        grad = ":grad" if torch.is_grad_enabled() and value.requires_grad else ""
        return f"{','.join(map(str, value.shape))}:{dtype_name(value.dtype)}{grad}"
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, (list, tuple)):
        return ("+" if isinstance(value[0], Tensor) else ",").join(map(_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def read(lines: Iterable[str]) -> list[str]:
    """The calls of a file: a line each, what follows a # aside, each of them once."""
    stripped = (line.partition("#")[0].strip() for line in lines)
    return list(dict.fromkeys(line for line in stripped if line))
