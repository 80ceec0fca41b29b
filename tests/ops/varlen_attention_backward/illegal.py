"""Every way to call `varlen_attention_backward` wrongly: with the results of another call, or as `varlen_attention`."""

from __future__ import annotations

from typing import Any

import torch
from ops.varlen_attention.illegal import LEGAL
from ops.varlen_attention.illegal import WRONG as FORWARD
from ops.varlen_attention.samples import packed
from ops.varlen_attention_backward.samples import with_results
from sample import Illegal, Sample

# total_q 6, total_k 9, 3 sequences, nheads 4, nheads_k 2, headdim 8.
DOUT, Q, K, V, OUT, LSE, CU_Q, CU_K = with_results(*packed())
IN_PLACE = {
    "dout": DOUT, "q": Q, "k": K, "v": V, "out": OUT, "lse": LSE, "cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K,
}  # fmt: skip
NOT_HERE = {"sinks", "return_lse"}
ELSEWHERE = {"heads before the tokens"}  # dout is found not to fit before cu_seqlens_q is

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "dout None": ({"dout": None}, "dout", ("got None", "a torch.Tensor")),
    "dout of another dtype": ({"dout": DOUT.half()}, "dout", ("float16", "float32, the dtype of q")),
    "dout without padding": ({"dout": DOUT[:5]}, "dout", ("5", "6")),
    "out of the keys": ({"out": torch.zeros(9, 4, 8)}, "out", ("9", "6")),
    "out on another device": ({"out": OUT.to("meta")}, "out", ("device meta", "cpu, the device of q")),
    "lse by token": ({"lse": LSE.t()}, "lse", ("4", "6")),
    "lse float64": ({"lse": LSE.double()}, "lse", ("float64", "float32")),
    **{name: row for name, row in FORWARD.items() if not NOT_HERE & set(row[0]) and name not in ELSEWHERE},
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
    legal = {name: LEGAL[name] for name in sorted(names)}
    return made({}), made({"max_seqlen_q": 3, "max_seqlen_k": 4}), made(legal)
