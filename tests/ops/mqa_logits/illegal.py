"""Every way to call `mqa_logits` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.mqa_logits.samples import FP8, indexed
from sample import Illegal, Sample

# total_q 5, total_k 9, nheads 4, headdim 8.
Q, K, W, STARTS, ENDS = indexed()
SCALE = torch.ones(9)
Q8, K8 = Q.to(FP8), K.to(FP8)

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "q padded": ({"q": Q[:, None]}, "q", ("shape (5, 1, 4, 8)", "(total_q, nheads, headdim)")),
    "q without heads": ({"q": Q[:, :0]}, "q", ("at least one head",)),
    "q strided": ({"q": Q.transpose(1, 2).contiguous().transpose(1, 2)}, "q", ("q.contiguous()",)),
    "q integers": ({"q": Q.int()}, "q", ("got int32", "floating-point")),
    "k None": ({"k": None}, "k", ("got None",)),
    "k with heads": ({"k": K[:, None]}, "k", ("shape (9, 1, 8)", "(total_k, headdim)", "k.squeeze(1)")),
    "k strided": ({"k": K.t().contiguous().t()}, "k", ("k.contiguous()",)),
    "k elsewhere": ({"k": K.to("meta")}, "k", ("device meta", "cpu, the device of q")),
    "headdim of k": ({"k": K[:, :4].contiguous()}, "k", ("headdim 4", "8, the headdim of q")),
    "k of another dtype": ({"k": K.half()}, "k", ("float16", "float32, the dtype of q")),
    "k of FP8 alone": ({"k": K8, "k_scale": SCALE}, "k", ("float8_e4m3fn", "float32, the dtype of q")),
    "weights None": ({"weights": None}, "weights", ("got None",)),
    "weights of other heads": ({"weights": W[:, :3]}, "weights", ("shape (5, 3)", "(total_q, nheads) = (5, 4)")),
    "weights of other rows": ({"weights": W[:4]}, "weights", ("shape (4, 4)", "5")),
    "weights bfloat16": ({"weights": W.bfloat16()}, "weights", ("bfloat16", "float32", "weights.float()")),
    "weights elsewhere": ({"weights": W.to("meta")}, "weights", ("device meta",)),
    "starts None": ({"starts": None}, "starts", ("got None",)),
    "starts int64": ({"starts": STARTS.long()}, "starts", ("int64", "int32", "starts.int()")),
    "starts of other rows": ({"starts": STARTS[:4]}, "starts", ("shape (4,)", "5")),
    "ends of two dimensions": ({"ends": ENDS[:, None]}, "ends", ("shape (5, 1)", "(total_q,) = (5,)")),
    "ends of other rows": ({"ends": ENDS[:4]}, "ends", ("shape (4,)", "5")),
    "ends elsewhere": ({"ends": ENDS.to("meta")}, "ends", ("device meta",)),
    "FP8 without a scale": ({"q": Q8, "k": K8}, "k_scale", ("got None", "float8_e4m3fn keys", "a factor of weights")),
    "a scale beside float32": ({"k_scale": SCALE}, "k_scale", ("a scale", "None beside float32 keys")),
    "a scale of other keys": (
        {"q": Q8, "k": K8, "k_scale": SCALE[:8]},
        "k_scale",
        ("shape (8,)", "9"),
    ),
    "a scale bfloat16": ({"q": Q8, "k": K8, "k_scale": SCALE.bfloat16()}, "k_scale", ("bfloat16", "float32")),
    "a scale of all": ({"q": Q8, "k": K8, "k_scale": SCALE[0]}, "k_scale", ("shape ()", "(total_k,) = (9,)")),
    "a scale elsewhere": ({"q": Q8, "k": K8, "k_scale": SCALE.to("meta")}, "k_scale", ("device meta",)),
}

IN_PLACE = {"q": Q, "k": K, "weights": W, "starts": STARTS, "ends": ENDS}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    return Sample(in_place, {name: value for name, value in arguments.items() if name not in IN_PLACE})


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    fine = (made({}), made({"q": Q8, "k": K8, "k_scale": SCALE}))
    return {name: Illegal(made(arguments), argument, said, fine) for name, (arguments, argument, said) in WRONG.items()}
