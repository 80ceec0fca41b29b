"""What a backend declares about its arithmetic, and how each declaration is bounded.

A backend never states a tolerance. It states where its kernels round, and the tolerance follows (see `noise.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

# "input" is the dtype of q; in a float32 call it is float32.
Place = Literal["float32", "input"]


class Arithmetic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rounding points of a kernel. The defaults are those of a tiled kernel as flash-attention describes it:
    float32 throughout, but for the probabilities, which meet V in the dtype of the inputs.

    scaled_q:        q * scale is rounded to the dtype of the inputs before it meets K.
    products:        how two float32 numbers are multiplied: "tf32" rounds both to 11 bits first. Numbers below
                     1e-41 have none there: that is told by `subnormals`.
    sums:            how sums of products are rounded: "truncated" toward zero, as NVIDIA's matrix units do, so that
                     long sums come out too small.
    scores:          what Q K^T is rounded to before the softmax. Tolerances follow where that moves no logit by more
                     than about 1: it does not make a right kernel for logits of thousands in 16 bits.
    recomputed_scores: the same where a backward pass computes it again.
    probabilities:   what the probabilities are rounded to before they meet V.
    partial_outputs: what partial outputs are rounded to where a split over the keys is merged.
    probability_gradients: what dP = dO V^T is rounded to before delta is taken off it.
    score_gradients: what dS is rounded to before it meets Q and K.
    head_gradients:  what each query head's share of dK and dV is rounded to before a group is added up.
    exp_bits:        the exponential is right to a relative 2^-exp_bits, always.
    tanh_bits:       so is tanh.
    subnormals:      "flushed" where numbers below float32's normal range may come out as 0.
    """

    scaled_q: bool = False
    products: Literal["float32", "tf32"] = "float32"
    sums: Literal["rounded", "truncated"] = "rounded"
    scores: Place = "float32"
    recomputed_scores: Place = "float32"
    probabilities: Place = "input"
    partial_outputs: Place = "float32"
    probability_gradients: Place = "float32"
    score_gradients: Place = "input"
    head_gradients: Place = "float32"
    exp_bits: Annotated[int, msgspec.Meta(ge=10, le=24)] = 21
    tanh_bits: Annotated[int, msgspec.Meta(ge=10, le=24)] = 21
    subnormals: Literal["kept", "flushed"] = "kept"


# A tiled kernel, and what a backend without a profile of its own is held to.
CANONICAL = Arithmetic()
