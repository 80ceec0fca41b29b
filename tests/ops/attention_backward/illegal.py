"""Every way to call `attention_backward` wrongly, that is not one of `attention` alone."""

from __future__ import annotations

from typing import Any

import torch
from ops.attention_backward.samples import with_results
from sample import Illegal, Sample
from support import qkv

# batch 2, seqlen_q 5, seqlen_k 6, nheads 4, nheads_k 2, headdim 8.
DOUT, Q, K, V, OUT, LSE = with_results(*qkv(batch=2, seqlen_q=5, seqlen_k=6, nheads=4, nheads_k=2, headdim=8))
IN_PLACE = {"dout": DOUT, "q": Q, "k": K, "v": V, "out": OUT, "lse": LSE}

LEGAL: dict[str, Any] = {
    "causal": True,
    "window": (1, 0),
    "align": 1,
    "scale": 1.0,
    "softcap": 1.0,
    "deterministic": True,
    "alibi_slopes": torch.ones(4),
    "bias": torch.ones(2, 4, 5, 6),
    "mask": torch.ones(2, 4, 5, 6, dtype=torch.bool),
    "seqlens_k": torch.ones(2, dtype=torch.int32),
}

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "dout None": ({"dout": None}, "dout", ("got None", "a torch.Tensor")),
    "dout of another dtype": ({"dout": DOUT.half()}, "dout", ("float16", "float32, the dtype of q")),
    "dout of fewer queries": ({"dout": DOUT[:, :4]}, "dout", ("shape (2, 4, 4, 8)", "(2, 5, 4, 8)")),
    "out BNSH": ({"out": OUT.transpose(1, 2)}, "out", ("shape (2, 4, 5, 8)", "(2, 5, 4, 8)")),
    "out on another device": ({"out": OUT.to("meta")}, "out", ("device meta", "cpu, the device of q")),
    "out a list": ({"out": OUT.tolist()}, "out", ("got list",)),
    "lse None": ({"lse": None}, "lse", ("got None",)),
    "lse with the heads last": ({"lse": LSE.transpose(1, 2)}, "lse", ("shape (2, 5, 4)", "(2, 4, 5)")),
    "lse float64": ({"lse": LSE.double()}, "lse", ("float64", "float32")),
    "q packed": ({"q": Q[0]}, "q", ("shape (5, 4, 8)", "(batch, seqlen, nheads, headdim)")),
    "tokens of v": ({"v": V[:, :5]}, "v", ("seqlen_k 5", "6, the seqlen_k of k")),
    "causal None": ({"causal": None}, "causal", ("got None", "True or False")),
    "deterministic 2": ({"deterministic": 2}, "deterministic", ("got 2", 'True, False or "batch"')),
    "align beyond 32 bits": ({"align": 2**70}, "align", (f"got {2**70}", "an int of 32 bits")),
    "align misspelt": ({"align": "bottom-right"}, "align", ("'bottom-right'", "an int")),
    "window an int": ({"window": 4}, "window", ("got 4", "(left, right)")),
    "scale nan": ({"scale": float("nan")}, "scale", ("got nan",)),
    "softcap 0": ({"softcap": 0.0}, "softcap", ("a float > 0, or None",)),
    "slopes 0": ({"alibi_slopes": torch.zeros(4)}, "alibi_slopes", ("slope of 0.0", "slopes > 0")),
    "a bias that wants a gradient": ({"bias": torch.ones(2, 4, 5, 6).requires_grad_()}, "bias", ("Detach it",)),
    "mask a float": ({"mask": torch.ones(2, 4, 5, 6)}, "mask", ("float32", "bool")),
    "lengths past the keys": ({"seqlens_k": torch.tensor([6, 7])}, "seqlens_k", ("6 to 7", "0 to seqlen_k")),
}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    named = {name: value for name, value in arguments.items() if name not in IN_PLACE}
    return Sample(in_place, named, differentiable=(0, 1, 2, 3, 4, 5))


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    return {
        name: Illegal(made(arguments), argument, said, beside(set(arguments) - set(IN_PLACE)))
        for name, (arguments, argument, said) in WRONG.items()
    }


def beside(names: set[str]) -> tuple[Sample, ...]:
    return made({}), made({name: LEGAL[name] for name in sorted(names)})
