"""What the ops of an indexer's logits share: sums over heads of w * relu(q.k), a part of their requests, and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, pages
from xattn.plugin.quantised import FP8
from xattn.plugin.request import Phase, Request, TensorSpec, dtype_name


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class LogitsRequest(Request):
    """dtype: of q and of the keys, FP8 beside k_scale. requires_grad: a tensor of the call requires grad, which no
    kernel serves."""

    nheads: int
    headdim: int
    k_scale: TensorSpec | None = None
    requires_grad: bool = False

    @property
    def out_dtype(self) -> torch.dtype:
        """Whatever dtype is."""
        return torch.float32

    def wanted_grads(self) -> list[str]:
        return ["inputs"] if self.requires_grad else []

    def sizes(self) -> dict[str, int]:
        return {"nheads": self.nheads, "headdim": self.headdim}

    @property
    def phase(self) -> Phase:
        return "inference"

    def _options(self) -> list[str]:
        """Dtype, place and what is on, for `str`."""
        scale = [] if self.k_scale is None else [f"k_scale={self.k_scale}"]
        return [dtype_name(self.dtype), self.place, *scale, *(["requires_grad"] if self.requires_grad else [])]


def check_queries(q: Any, weights: Any) -> None:
    pages.check_queries(q)
    checks.check_tensor("weights", weights)
    checks.check_option("weights", weights, q, "float32", {"(total_q, nheads)": tuple(q.shape[:2])})


def check_keys(name: str, keys: Tensor, scale: Tensor | None, q: Tensor, shapes: dict[str, tuple[int, ...]]) -> None:
    """The dtype of keys and their scale. name: of the keys. shapes: of the scale, by name."""
    if keys.dtype != q.dtype:
        want = f"{dtype_name(q.dtype)}, the dtype of q"
        raise InvalidArgumentError(name, dtype_name(keys.dtype), want)
    if (q.dtype in FP8) != (scale is not None):
        got, want = ("None", "the scale of") if q.dtype in FP8 else ("a scale", "None beside")
        hint = "The scale of q is a factor of weights." if q.dtype in FP8 else ""
        raise InvalidArgumentError("k_scale", got, f"{want} {dtype_name(q.dtype)} keys", hint)
    if scale is not None:
        checks.check_option("k_scale", scale, q, "float32", shapes)


def check_free_sizes(q: Any, weights: Any) -> None:
    """Those that must agree from call to call."""
    if checks.has_rank(q, 3) and checks.has_rank(weights, 2) and weights.shape[0] != q.shape[0]:
        want = f"({q.shape[0]}, nheads), as many rows as q"
        raise InvalidArgumentError("weights", f"shape {tuple(weights.shape)}", want)
