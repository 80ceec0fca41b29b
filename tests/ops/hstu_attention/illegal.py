"""Every way to call `hstu_attention` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.hstu_attention.samples import packed
from sample import Illegal, Sample
from torch import Tensor

# total 8 of which 7 are in 3 sequences, nheads 4, headdim 8.
Q, K, V, CU = packed()


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


LEGAL: dict[str, Any] = {
    "norm": 4.0,
    "scale": 1.0,
    "causal": False,
    "num_targets": ints(1, 0, 1),
    "max_attn_len": 3,
    "contextual_seqlen": 2,
    "max_seqlen": 4,
    "deterministic": True,
}

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "q padded": ({"q": Q[None]}, "q", ("shape (1, 8, 4, 8)", "(total, nheads, headdim)", "one sequence after")),
    "k of two dimensions": ({"k": K[:, 0]}, "k", ("shape (8, 8)", "(total, nheads, headdim)")),
    "q without heads": ({"q": Q[:, :0]}, "q", ("at least one head",)),
    "q strided": ({"q": Q.transpose(1, 2).contiguous().transpose(1, 2)}, "q", ("q.contiguous()",)),
    "integers": ({"q": Q.int(), "k": K.int(), "v": V.int()}, "q", ("got int32", "floating-point")),
    "k of another dtype": ({"k": K.half()}, "k", ("float16", "float32, the dtype of q")),
    "v on another device": ({"v": V.to("meta")}, "v", ("device meta", "cpu, the device of q")),
    "headdim of k": ({"k": K[..., :4].contiguous()}, "k", ("headdim 4", "8, the headdim of q")),
    "tokens of k": ({"k": K[:5]}, "k", ("total 5", "8, the total of q")),
    "tokens of v": ({"v": V[:5]}, "v", ("total 5", "8, the total of q")),
    "heads of k": ({"k": K[:, :2]}, "k", ("nheads 2", "4, the nheads of q")),
    "heads of v": ({"v": V[:, :1]}, "v", ("nheads 1", "4, the nheads of q")),
    # cu_seqlens.
    "cu_seqlens None": ({"cu_seqlens": None}, "cu_seqlens", ("got None",)),
    "cu_seqlens int64": ({"cu_seqlens": CU.long()}, "cu_seqlens", ("int64", "int32", "cu_seqlens.int()")),
    "cu_seqlens elsewhere": ({"cu_seqlens": CU.to("meta")}, "cu_seqlens", ("device meta",)),
    "cu_seqlens of two dimensions": ({"cu_seqlens": CU[None]}, "cu_seqlens", ("shape (1, 4)", "(batch + 1,)")),
    "lengths, not their sums": ({"cu_seqlens": ints(4, 0, 3)}, "cu_seqlens", ("4 as its first value, want 0",)),
    "sums that decrease": ({"cu_seqlens": ints(0, 4, 3, 7)}, "cu_seqlens", ("4, 3 at 1", "do not decrease")),
    "sums past the tokens": ({"cu_seqlens": ints(0, 4, 6, 9)}, "cu_seqlens", ("9 as its last", "at most 8")),
    "a bound too small": ({"max_seqlen": 3}, "max_seqlen", ("got 3", "at least 4, the length of sequence 0")),
    "a bound below 0": ({"max_seqlen": -1}, "max_seqlen", ("got -1",)),
    "a bound a float": ({"max_seqlen": 4.0}, "max_seqlen", ("got 4.0", "an int >= 0 of 32 bits, or None")),
    # Options.
    "norm 0": ({"norm": 0.0}, "norm", ("got 0.0", "a finite float > 0")),
    "norm None": ({"norm": None}, "norm", ("got None", "a finite float > 0", "the longest sequence")),
    "norm a tensor": ({"norm": torch.ones(3)}, "norm", ("a finite float > 0",)),
    "scale nan": ({"scale": float("nan")}, "scale", ("got nan", "a finite float", "no default")),
    "scale None": ({"scale": None}, "scale", ("got None", "a finite float", "no default")),
    "scale a tensor": ({"scale": torch.ones(1)}, "scale", ("a finite float", "float(scale)")),
    "causal None": ({"causal": None}, "causal", ("got None", "True or False")),
    "deterministic a str": ({"deterministic": "batch"}, "deterministic", ("'batch'", "True or False")),
    "max_attn_len below 0": ({"max_attn_len": -1}, "max_attn_len", ("got -1", "an int >= 0", "None for off")),
    "max_attn_len a float": ({"max_attn_len": 2.5}, "max_attn_len", ("got 2.5", "an int >= 0")),
    "contextual_seqlen below 0": ({"contextual_seqlen": -1}, "contextual_seqlen", ("got -1", "an int >= 0")),
    "contextual_seqlen a str": ({"contextual_seqlen": "2"}, "contextual_seqlen", ("got '2'", "an int >= 0")),
    # Parts of sequences.
    "targets int64": ({"num_targets": ints(1, 0, 1, dtype=torch.int64)}, "num_targets", ("int64", "num_targets.int()")),
    "targets of another batch": ({"num_targets": ints(1, 0)}, "num_targets", ("shape (2,)", "(3,)")),
    "targets of all": ({"num_targets": torch.tensor(1, dtype=torch.int32)}, "num_targets", ("shape ()", "(3,)")),
    "targets elsewhere": ({"num_targets": ints(1, 0, 1).to("meta")}, "num_targets", ("device meta",)),
    "targets below 0": ({"num_targets": ints(1, 0, -1)}, "num_targets", ("-1 at 2", "0 to 3")),
    "more targets than tokens": ({"num_targets": ints(5, 0, 1)}, "num_targets", ("5 at 0", "0 to 4")),
    "a target of no sequence": ({"num_targets": ints(1, 1, 1)}, "num_targets", ("1 at 1", "0 to 0")),
    "contextual tokens past the sequence": (
        {"contextual_seqlen": 5},
        "contextual_seqlen",
        ("got 5", "at most 4, as sequence 2 has 3 tokens and 0 targets"),
    ),
    "contextual tokens among the targets": (
        {"contextual_seqlen": 4, "num_targets": ints(2, 0, 0)},
        "contextual_seqlen",
        ("got 4", "at most 3, as sequence 0 has 4 tokens and 2 targets"),
    ),
}

IN_PLACE = {"q": Q, "k": K, "v": V, "cu_seqlens": CU}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    named = {name: value for name, value in arguments.items() if name not in IN_PLACE}
    return Sample(in_place, {"norm": 4.0, "scale": 1.0, **named}, differentiable=(0, 1, 2))


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    return {
        name: Illegal(made(arguments), argument, said, beside(set(arguments) - set(IN_PLACE)))
        for name, (arguments, argument, said) in WRONG.items()
    }


def beside(names: set[str]) -> tuple[Sample, ...]:
    legal = {name: LEGAL[name] for name in sorted(names)}
    return made({}), made({"max_seqlen": 4}), made(legal)
