"""Random problems for the model kernels: small, and free of the suite's own inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from xattn_conformance.array import Array
from xattn_conformance.mutants.numbers import to_dtype
from xattn_conformance.ops.attention.problem import Problem

# One or two options each, and the sizes they need.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one query": {"seqlen_q": 1},
    "more queries than keys": {"causal": True, "seqlen_k": 20},
    "fewer queries than keys": {"causal": True, "seqlen_q": 20, "align": "top_left"},
    "window": {"window": (5, 3)},
    "left window": {"window": (3, None), "causal": True},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True, "causal": True, "seqlen_k": 30},
    "alibi": {"alibi_slopes": 1, "seqlens_k": [20, 0]},
    "alibi by batch": {"alibi_slopes": 2, "causal": True},
    "bias": {"bias": (1, 4, 40, 1), "softcap": 3.0},
    "bias of pairs": {"bias": (40, 40), "mask": 0.5},
    "bias that hides": {"bias": (2, 1, 1, 40), "hide": True},
    "mask of heads": {"mask": 0.1},
    "seqlens_k": {"seqlens_k": [33, 1], "causal": True, "sinks": True},
    "scale": {"scale": -0.3},
    "no scale": {"scale": 0.0},
    "one group": {"nheads_k": 1, "headdim_v": 24},
    "no group": {"nheads_k": 4, "headdim_v": 9},
    "no keys": {"seqlen_k": 0},
    "no keys, sinks": {"seqlen_k": 0, "sinks": True},
    "no queries": {"seqlen_q": 0},
    "no batch": {"batch": 0},
}


def problem(name: str, dtype: str = "float32", *, seed: int = 0, grads: bool = False, **more: Any) -> Problem:
    """The problem of a name of FEATURES; `more` overrides sizes and options of `Problem`."""
    options = {**FEATURES[name], **more}
    sizes = {"batch": 2, "seqlen_q": 40, "seqlen_k": 40, "nheads": 4, "nheads_k": 2, "headdim": 16, "headdim_v": 16}
    sizes |= {key: options.pop(key) for key in sizes if key in options}
    batch, seqlen_q, seqlen_k, nheads, nheads_k, headdim, headdim_v = sizes.values()
    generator = np.random.default_rng(seed)

    def normal(*shape: int, dtype: str = dtype) -> Array:
        return to_dtype(generator.standard_normal(shape).astype(np.float32), dtype).astype(np.float64)

    q, k = normal(batch, seqlen_q, nheads, headdim), normal(batch, seqlen_k, nheads_k, headdim)
    v = normal(batch, seqlen_k, nheads_k, headdim_v)
    hide = options.pop("hide", False)
    if options.get("sinks"):
        options["sinks"] = normal(nheads, dtype="float32")
    if "alibi_slopes" in options:
        shape = (batch, nheads)[2 - options["alibi_slopes"] :]
        options["alibi_slopes"] = np.abs(normal(*shape, dtype="float32"))
    if "bias" in options:
        bias = normal(*options["bias"])
        options["bias"] = np.where(normal(*bias.shape) > 1, -np.inf, bias) if hide else bias
    if "mask" in options:
        options["mask"] = generator.random((batch, nheads, seqlen_q, seqlen_k)) < options["mask"]
    if "seqlens_k" in options:
        options["seqlens_k"] = np.array(options["seqlens_k"])
    made = Problem(dtype, q, k, v, **options)
    if not grads:
        return made
    wanted = ["q", "k", "v"] + [name for name in ("bias", "sinks") if getattr(made, name) is not None]
    dout, dlse = normal(batch, seqlen_q, nheads, headdim_v), normal(batch, nheads, seqlen_q, dtype="float32")
    return replace(made, dout=dout, dlse=dlse, grads=tuple(wanted))
