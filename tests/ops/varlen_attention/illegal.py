"""Every way to call `varlen_attention` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.varlen_attention.samples import packed
from sample import Illegal, Sample
from torch import Tensor

# total_q 6, total_k 9, 3 sequences, nheads 4, nheads_k 2, headdim 8.
Q, K, V, CU_Q, CU_K = packed()


def cu(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


LEGAL: dict[str, Any] = {
    "max_seqlen_q": 3,
    "max_seqlen_k": 4,
    "causal": True,
    "window": (1, 0),
    "align": "top_left",
    "scale": 1.0,
    "softcap": 1.0,
    "deterministic": True,
    "return_lse": True,
    "check": True,
    "sinks": ones(4),
    "alibi_slopes": ones(4),
}

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "q padded": ({"q": Q[None]}, "q", ("shape (1, 6, 4, 8)", "(total_q, nheads, headdim)", "attention")),
    "k of two dimensions": ({"k": K[:, 0]}, "k", ("shape (9, 8)", "(total_k, nheads, headdim)")),
    "q without heads": ({"q": Q[:, :0]}, "q", ("at least one head",)),
    "q strided": ({"q": Q.transpose(1, 2).contiguous().transpose(1, 2)}, "q", ("q.contiguous()",)),
    "integers": ({"q": Q.int(), "k": K.int(), "v": V.int()}, "q", ("got int32", "floating-point")),
    "k of another dtype": ({"k": K.half()}, "k", ("float16", "float32, the dtype of q")),
    "v on another device": ({"v": V.to("meta")}, "v", ("device meta", "cpu, the device of q")),
    "headdim of k": ({"k": K[..., :4].contiguous()}, "k", ("headdim 4", "8, the headdim of q")),
    "tokens of v": ({"v": V[:5]}, "v", ("total_k 5", "9, the total_k of k")),
    "heads of v": ({"v": V[:, :1]}, "v", ("nheads_k 1", "2, the nheads_k of k")),
    "heads that do not divide": ({"q": Q[:, :3]}, "k", ("nheads_k 2", "a divisor of nheads, which is 3")),
    # cu_seqlens.
    "cu_seqlens_q None": ({"cu_seqlens_q": None}, "cu_seqlens_q", ("got None",)),
    "cu_seqlens_q a list": ({"cu_seqlens_q": [0, 3]}, "cu_seqlens_q", ("got list", "a torch.Tensor")),
    "cu_seqlens_q int64": ({"cu_seqlens_q": CU_Q.long()}, "cu_seqlens_q", ("int64", "int32", "cu_seqlens_q.int()")),
    "cu_seqlens_k float": ({"cu_seqlens_k": CU_K.float()}, "cu_seqlens_k", ("float32", "int32", "cu_seqlens_k.int()")),
    "cu_seqlens_k elsewhere": ({"cu_seqlens_k": CU_K.to("meta")}, "cu_seqlens_k", ("device meta",)),
    "cu_seqlens_q of two dimensions": ({"cu_seqlens_q": CU_Q[None]}, "cu_seqlens_q", ("shape (1, 4)", "(batch + 1,)")),
    "cu_seqlens_q of nothing": ({"cu_seqlens_q": CU_Q[:0]}, "cu_seqlens_q", ("shape (0,)", "(batch + 1,)")),
    "cu_seqlens of two batches": ({"cu_seqlens_k": CU_K[:3]}, "cu_seqlens_k", ("3", "4", "cu_seqlens_q")),
    "lengths, not their sums": (
        {"cu_seqlens_q": cu(3, 0, 2, 5)},
        "cu_seqlens_q",
        ("3 as its first value, want 0", "lengths.cumsum(0)"),
    ),
    "heads before the tokens": (
        {"q": Q.transpose(0, 1), "cu_seqlens_q": cu(0, 2, 3, 6)},
        "cu_seqlens_q",
        ("6 as its last", "Of a (nheads, tokens, headdim) tensor pass x.transpose(0, 1)"),
    ),
    "sums that decrease": ({"cu_seqlens_q": cu(0, 3, 2, 5)}, "cu_seqlens_q", ("3, 2 at 1", "do not decrease")),
    "sums past the tokens": ({"cu_seqlens_k": cu(0, 4, 6, 10)}, "cu_seqlens_k", ("10 as its last", "at most 9")),
    # Bounds.
    "a bound too small": (
        {"max_seqlen_k": 3},
        "max_seqlen_k",
        ("got 3", "at least 4, the length of sequence 0", "None reads it"),
    ),
    "a bound of queries too small": (
        {"max_seqlen_q": 2},
        "max_seqlen_q",
        ("got 2", "at least 3, the length of sequence 0"),
    ),
    "a bound below 0": ({"max_seqlen_q": -1}, "max_seqlen_q", ("got -1",)),
    "a bound a float": ({"max_seqlen_q": 3.0}, "max_seqlen_q", ("got 3.0", "an int >= 0 of 32 bits, or None")),
    "a bound a bool": ({"max_seqlen_k": True}, "max_seqlen_k", ("got True",)),
    "a bound beyond 32 bits": ({"max_seqlen_q": 2**70}, "max_seqlen_q", (f"got {2**70}", "of 32 bits")),
    "a bound a str": ({"max_seqlen_q": "3"}, "max_seqlen_q", ("'3'", "an int >= 0 of 32 bits, or None")),
    "a bound a tensor": (
        {"max_seqlen_q": torch.tensor(3)},
        "max_seqlen_q",
        ("tensor(3)", "an int >= 0 of 32 bits, or None"),
    ),
    # Options.
    "causal None": ({"causal": None}, "causal", ("got None", "True or False")),
    "check a str": ({"check": "yes"}, "check", ("'yes'", "True or False")),
    "return_lse 2": ({"return_lse": 2}, "return_lse", ("got 2", "True or False")),
    "deterministic None": ({"deterministic": None}, "deterministic", ("got None", 'True, False or "batch"')),
    "align misspelt": ({"align": "bottom-right"}, "align", ("'bottom-right'", "a (batch,) int32 tensor", "an int")),
    "align a float": ({"align": 1.0}, "align", ("got 1.0", "a (batch,) int32 tensor", "an int")),
    "align a bool": ({"align": True}, "align", ("got True", "an int")),
    "align beyond 32 bits": ({"align": 2**70}, "align", (f"got {2**70}", "an int of 32 bits")),
    "align int64": ({"align": cu(1, 2, 3, dtype=torch.int64)}, "align", ("int64", "int32", "align.int()")),
    "align of another batch": ({"align": cu(1, 2)}, "align", ("shape (2,)", "(3,)")),
    "align elsewhere": ({"align": cu(1, 2, 3).to("meta")}, "align", ("device meta",)),
    "window an int": ({"window": 4}, "window", ("got 4", "(left, right)", "(4 - 1, 0)")),
    "window negative": ({"window": (-1, 0)}, "window", ("None is open; xattn has no -1",)),
    "scale nan": ({"scale": float("nan")}, "scale", ("got nan", "a finite float or None")),
    "softcap 0": ({"softcap": 0.0}, "softcap", ("a float > 0, or None", "None switches it off")),
    # Optional tensors.
    "sinks of another length": ({"sinks": ones(3)}, "sinks", ("shape (3,)", "(4,)")),
    "sinks int": ({"sinks": ones(4, dtype=torch.int32)}, "sinks", ("int32", "floating-point")),
    "slopes of another length": (
        {"alibi_slopes": ones(2)},
        "alibi_slopes",
        ("shape (2,)", "(nheads,) = (4,) or (batch, nheads) = (3, 4)"),
    ),
    "slopes 0": ({"alibi_slopes": 0 * ones(4)}, "alibi_slopes", ("slope of 0.0", "slopes > 0")),
    "slopes float64": ({"alibi_slopes": ones(4, dtype=torch.float64)}, "alibi_slopes", ("float64", "want float32")),
    "slopes that want a gradient": ({"alibi_slopes": ones(4).requires_grad_()}, "alibi_slopes", ("Detach it",)),
}

IN_PLACE = {"q": Q, "k": K, "v": V, "cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    named = {name: value for name, value in arguments.items() if name not in IN_PLACE}
    return Sample(in_place, named, differentiable=(0, 1, 2))


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    return {
        name: Illegal(made(arguments), argument, said, beside(set(arguments) - set(IN_PLACE)))
        for name, (arguments, argument, said) in WRONG.items()
    }


def beside(names: set[str]) -> tuple[Sample, ...]:
    legal = {name: LEGAL[name] for name in sorted(names)}
    return made({}), made({"max_seqlen_q": 3, "max_seqlen_k": 4}), made(legal)
