"""What ops have that are a softmax over scores q @ k.T: the band, the diagonal, softcap, sinks, ALiBi, groups, lse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from xattn.plugin.request import Phase, Request, TensorSpec
from xattn.plugin.symbolic import holds

# Where a caller says that the diagonal is, by name.
Align = Literal["bottom_right", "top_left"]
ALIGNS = get_args(Align)

# What a call may ask of its bits: nothing, the same from run to run, or whatever the other sequences are as well.
Deterministic = bool | Literal["batch"]

# (left, right), each an int >= 0 or None for open.
Window = tuple[int | None, int | None]


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SoftmaxRequest(Request):
    """align: "offset" where the caller gives `off` itself, an int, "offsets" where a tensor, one off a sequence. Its
        value is no part of the request: a plan gets it with each call, as the keyword `align`.
    deterministic, batch_invariant: the option `deterministic`, of which "batch" asks for both.
    requires_grad: a gradient is wanted for q, k or v; sinks carry their own flag.
    """

    nheads: int
    nheads_k: int
    headdim: int
    headdim_v: int
    causal: bool = False
    window: Window | None = None
    align: Literal["bottom_right", "top_left", "offset", "offsets"] = "bottom_right"
    scale: float | None = None
    softcap: float | None = None
    sinks: TensorSpec | None = None
    alibi_slopes: TensorSpec | None = None
    deterministic: bool = False
    batch_invariant: bool = False
    return_lse: bool = False
    requires_grad: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.nheads // self.nheads_k

    @property
    def softmax_scale(self) -> float:
        """The factor on q @ k.T: `scale`, or 1/sqrt(headdim) where it is None."""
        return self.headdim**-0.5 if self.scale is None else self.scale

    @property
    def band(self) -> Window:
        """(left, right) of `causal` and `window` together: key j is visible to query i when
        i + off - left <= j <= i + off + right; None is open."""
        left, right = self.window if self.window is not None else (None, None)
        return left, (0 if self.causal else right)

    @property
    def has_band(self) -> bool:
        left, right = self.band
        return left is not None or right is not None

    @property
    def positional(self) -> bool:
        """Whether the answer depends on where the diagonal is."""
        return self.has_band or self.alibi_slopes is not None

    @property
    def any_grad(self) -> bool:
        """Whether a backward pass may follow."""
        return self.requires_grad or wants_grad(self.sinks)

    def wanted_grads(self) -> list[str]:
        wanted = (
            ("qkv", self.requires_grad),
            ("sinks", wants_grad(self.sinks)),
            ("lse", self.return_lse and self.any_grad),
        )
        return [name for name, is_wanted in wanted if is_wanted]

    def lse_grad(self, tensors: Sequence[Any]) -> bool:
        """Whether a gradient may be asked of lse. tensors: q, k, ..."""
        q, k, *_ = tensors
        return (self.requires_grad and (q.requires_grad or k.requires_grad)) or wants_grad(self.sinks)

    def sizes(self) -> dict[str, int]:
        return {"headdim": self.headdim, "headdim_v": self.headdim_v}

    def _extents(self, batch: int, seqlen_q: int, seqlen_k: int) -> dict[str, int]:
        """`extents`, of the sizes that each op calls otherwise. Heads of k count with the batch: a kernel has the same
        work for two rows of four as for one of eight."""
        rows = batch * self.nheads_k
        found = {"batch_nheads_k": rows, "group": self.group, "seqlen_q": seqlen_q, "seqlen_k": seqlen_k}
        left, right = self.band
        if left is not None and right is not None:
            found["window"] = left + right + 1
        return found

    def _options(self) -> list[str]:
        """The options that are on, for `str`."""
        parts = [
            name
            for name in ("causal", "deterministic", "batch_invariant", "return_lse", "requires_grad")
            if getattr(self, name)
        ]
        for name in ("window", "scale", "softcap", "dropout_p"):
            if getattr(self, name, None) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        if self.positional and self.align != "bottom_right":
            parts.append(f"align={self.align}")
        for name in ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k"):
            spec: TensorSpec | None = getattr(self, name, None)
            if spec is not None:
                parts.append(f"{name}={spec}")
        return parts


def wants_grad(spec: TensorSpec | None) -> bool:
    return spec is not None and spec.requires_grad


def phase_of(any_grad: bool, seqlen_q: int) -> Phase:
    if any_grad:
        return "train"
    return "decode" if holds(seqlen_q == 1) else "prefill"


PHASES = ("train", "decode", "prefill")
