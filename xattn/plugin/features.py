"""The words of capability blocks: each is declared once, with what of a request uses it. Ops list those that they have.

A word that one op alone has is declared in that op's room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xattn.plugin.request import dtype_name
from xattn.plugin.symbolic import known

_TURN = 'The backend may serve align="{}", which is another answer.'


@dataclass(frozen=True)
class Feature:
    """name: as `Capabilities.features` has it, and as a Reason's code. hint: what the caller can do without it.

    used: what a request has of the feature, None where it does not use it. Traced by torch.compile, with sizes that may
    be symbolic: compare them, never put them into text.
    """

    name: str
    used: Callable[[Any], object]
    hint: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """The words of one op: what a capability block of its kernels may declare.

    grads: the gradients there are. sizes: what may be bounded. phases: the keys of a priority, beside "default".
    """

    op: str
    features: tuple[Feature, ...]
    grads: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)


def argument(name: str, hint: str = "") -> Feature:
    """The feature of an argument that is None where it is off."""
    return Feature(name, lambda request: getattr(request, name), hint)


def flag(name: str, hint: str = "") -> Feature:
    """The feature of an argument that is True or False."""
    return Feature(name, lambda request: True if getattr(request, name) else None, hint)


def _aligned(align: str) -> Callable[[Any], object]:
    return lambda request: "asked for" if request.align == align and request.alignment_matters else None


# Where the diagonal is counts only where the answer depends on it.
BOTTOM_RIGHT = Feature("bottom_right", _aligned("bottom_right"), _TURN.format("top_left"))
TOP_LEFT = Feature("top_left", _aligned("top_left"), _TURN.format("bottom_right"))
OFFSET = Feature(
    "offset", _aligned("offset"), 'Where the diagonal is that of align="bottom_right" or "top_left", say so.'
)
OFFSETS = Feature("offsets", _aligned("offsets"), "One int for all sequences may be served.")

CAUSAL = flag("causal")
WINDOW = argument("window")
GQA = Feature("gqa", lambda r: None if known(r.nheads_k == r.nheads) else (r.nheads, r.nheads_k))
HEADDIM_V = Feature(
    "headdim_v",
    lambda r: None if known(r.headdim_v == r.headdim) else r.headdim_v,
    "The backend wants headdim_v == headdim.",
)
# Of an op that writes to a cache: None where the values are a part of the keys.
LATENT = Feature("latent", lambda r: True if r.headdim_v is None else None)
HEADDIM_V_OF_A_CACHE = Feature(
    "headdim_v", lambda r: None if r.headdim_v is None or known(r.headdim_v == r.headdim) else r.headdim_v
)
SOFTCAP = argument("softcap")
SINKS = argument("sinks")
ALIBI_SLOPES = argument("alibi_slopes")
BIAS = argument("bias")
MASK = argument("mask")
SEQLENS_K = argument("seqlens_k")
DROPOUT_P = argument("dropout_p")
DETERMINISTIC = flag("deterministic")
BATCH_INVARIANT = flag("batch_invariant", "deterministic=True asks for the same bits from run to run alone.")
RETURN_LSE = flag("return_lse")
STALE_PAGES = Feature(
    "stale_pages",
    lambda r: None if r.unseen_finite else "may hold NaN",
    "Where the pool was cleared once and never held a NaN, say unseen_finite=True.",
)
OUT_DTYPE = Feature("out_dtype", lambda r: None if r.out_dtype is None else dtype_name(r.out_dtype))
FORMAT = argument(
    "format", "xattn.cache.FormattedCache.numbers() is a plain copy, xattn.cache.FormattedCache.made(...) the way back."
)
EMPTY = Feature("empty", lambda r: "a size of 0" if r.empty else None)
