"""Every way to call `attention` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from sample import Illegal, Sample
from support import qkv

# batch 2, seqlen_q 5, seqlen_k 6, nheads 4, nheads_k 2, headdim 8: no two sizes that matter are equal.
Q, K, V = qkv(batch=2, seqlen_q=5, seqlen_k=6, nheads=4, nheads_k=2, headdim=8)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


def strided(x: torch.Tensor) -> torch.Tensor:
    """x with a last dimension that is not dense."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


# Legal values of every argument: what a program calls with before and after it makes a mistake.
LEGAL: dict[str, Any] = {
    "causal": True,
    "window": (1, 0),
    "align": "top_left",
    "scale": 1.0,
    "softcap": 1.0,
    "dropout_p": 0.5,
    "deterministic": True,
    "return_lse": True,
    "sinks": ones(4),
    "alibi_slopes": ones(4),
    "bias": ones(2, 4, 5, 6),
    "mask": ones(2, 4, 5, 6, dtype=torch.bool),
    "seqlens_k": ones(2, dtype=torch.int32),
}

# (the arguments, the one that is named, parts of the message)
Row = tuple[dict[str, Any], str, tuple[str, ...]]
WRONG: dict[str, Row] = {
    # What is no tensor of four dimensions.
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "k None": ({"k": None}, "k", ("got None",)),
    "v a list": ({"v": V.tolist()}, "v", ("got list", "torch.as_tensor(v)")),
    "q an array": ({"q": Q.numpy()}, "q", ("got ndarray", "a torch.Tensor", "torch.as_tensor(q)")),
    "k an array, lengths given": ({"k": K.numpy(), "seqlens_k": LEGAL["seqlens_k"]}, "k", ("got ndarray",)),
    "q packed": ({"q": Q[0]}, "q", ("shape (5, 4, 8)", "q[None]", "varlen_attention")),
    "k packed, lengths given": ({"k": K[0], "seqlens_k": LEGAL["seqlens_k"]}, "k", ("shape (6, 2, 8)",)),
    "k without dimensions": ({"k": ones(), "seqlens_k": LEGAL["seqlens_k"]}, "k", ("shape ()",)),
    "v of five dimensions": ({"v": V[None]}, "v", ("shape (1, 2, 6, 2, 8)", "4 dimensions")),
    "q without heads": ({"q": Q[:, :, :0]}, "q", ("shape (2, 5, 0, 8)", "at least one head")),
    "k without heads": ({"k": K[:, :, :0], "v": V[:, :, :0]}, "k", ("shape (2, 6, 0, 8)", "at least one head")),
    "headdim 0": ({"q": Q[..., :0], "k": K[..., :0]}, "q", ("shape (2, 5, 4, 0)", "one dimension")),
    "headdim_v 0": ({"v": V[..., :0]}, "v", ("shape (2, 6, 2, 0)",)),
    "q strided": ({"q": strided(Q)}, "q", ("strides (160, 32, 1, 4)", "dense last dimension", "q.contiguous()")),
    "k strided": ({"k": strided(K)}, "k", ("dense last dimension", "k.contiguous()")),
    "v expanded": ({"v": V[..., :1].expand_as(V)}, "v", ("dense last dimension", "v.contiguous()")),
    # Dtypes and devices.
    "integers": ({"q": Q.int(), "k": K.int(), "v": V.int()}, "q", ("got int32", "floating-point", "Cast q first")),
    "q bool": ({"q": Q > 0}, "q", ("got bool",)),
    "v complex": ({"v": V.to(torch.complex64)}, "v", ("got complex64",)),
    "k of another dtype": ({"k": K.half()}, "k", ("got float16", "float32, the dtype of q. Pass k.to(q.dtype)")),
    "v of another dtype": ({"v": V.double()}, "v", ("got float64", "float32, the dtype of q")),
    "q of another dtype": ({"q": Q.bfloat16()}, "k", ("got float32", "bfloat16, the dtype of q")),
    "k on another device": ({"k": K.to("meta")}, "k", ("device meta", "cpu, the device of q. Pass k.to(q.device)")),
    "v on another device": ({"v": V.to("meta")}, "v", ("device meta", "cpu, the device of q")),
    "mask on another device": ({"mask": LEGAL["mask"].to("meta")}, "mask", ("device meta", "cpu, the device of q")),
    "sinks on another device": ({"sinks": ones(4).to("meta")}, "sinks", ("device meta",)),
    "lengths on another device": ({"seqlens_k": LEGAL["seqlens_k"].to("meta")}, "seqlens_k", ("device meta",)),
    # Shapes that do not fit together.
    "BNSH": (
        {"q": Q.transpose(1, 2), "k": K.transpose(1, 2), "v": V.transpose(1, 2)},
        "k",
        (
            "nheads_k 6",
            "a divisor of nheads, which is 5",
            "look like (batch, nheads, seqlen, headdim)",
            "transpose(1, 2)",
        ),
    ),
    "batch of k": ({"k": K[:1]}, "k", ("batch 1", "2, the batch of q")),
    "batch of v": ({"v": V[:1]}, "v", ("batch 1", "2, the batch of q")),
    "headdim of k": ({"k": K[..., :4]}, "k", ("headdim 4", "8, the headdim of q")),
    "seqlen of v": ({"v": V[:, :5]}, "v", ("seqlen_k 5", "6, the seqlen_k of k")),
    "heads of v": ({"v": V[:, :, :1]}, "v", ("nheads_k 1", "2, the nheads_k of k")),
    "heads that do not divide": ({"q": Q[:, :, :3]}, "k", ("nheads_k 2", "a divisor of nheads, which is 3")),
    "more heads in k than in q": ({"q": Q[:, :, :1]}, "k", ("nheads_k 2", "a divisor of nheads, which is 1")),
    # Options.
    "causal None": ({"causal": None}, "causal", ("got None", "True or False")),
    "causal 2": ({"causal": 2}, "causal", ("got 2", "True or False")),
    "causal a tensor": ({"causal": torch.tensor(True)}, "causal", ("tensor(True)", "True or False")),
    "causal a mask": ({"causal": LEGAL["mask"]}, "causal", ("got Tensor", "True or False")),
    "causal a list": ({"causal": [True]}, "causal", ("got [True]", "True or False")),
    "deterministic a str": ({"deterministic": "warn"}, "deterministic", ("'warn'", 'True, False or "batch"')),
    "return_lse None": ({"return_lse": None}, "return_lse", ("got None", "True or False")),
    "align misspelt": (
        {"align": "bottom-right"},
        "align",
        ("'bottom-right'", '"bottom_right", "top_left" or an int of 32 bits, the key that query 0 is aligned with'),
    ),
    "align None": ({"align": None}, "align", ("got None",)),
    "align a bool": (
        {"align": True},
        "align",
        ("got True", "or an int of 32 bits, the key that query 0 is aligned with"),
    ),
    "align a float": ({"align": 2.0}, "align", ("got 2.0", "or an int of 32 bits, the key")),
    "align a tensor": ({"align": torch.tensor(2)}, "align", ("got tensor(2)", "or an int of 32 bits, the key")),
    "align beyond 32 bits": ({"align": 2**70, "causal": True}, "align", (f"got {2**70}", "an int of 32 bits")),
    "align before 32 bits": ({"align": -(2**70)}, "align", (f"got -{2**70}", "an int of 32 bits")),
    "align a list": ({"align": ["top_left"]}, "align", ("got ['top_left']",)),
    "window an int": ({"window": 4}, "window", ("got 4", "(left, right)", "sliding window of W keys", "(4 - 1, 0)")),
    "window a str": ({"window": "10"}, "window", ("'10'", "(left, right), each an int >= 0 or None")),
    "window of three": ({"window": (1, 2, 3)}, "window", ("(1, 2, 3)", "(left, right)")),
    "window of one": ({"window": [1]}, "window", ("[1]", "(left, right)")),
    "window a dict": ({"window": {"left": 1}}, "window", ("{'left': 1}", "(left, right)")),
    "window an array": ({"window": Q.numpy()}, "window", ("got ndarray",)),
    "window negative left": (
        {"window": (-1, 0)},
        "window",
        ("(-1, 0)", "None is open; xattn has no -1: pass (None, 0)."),
    ),
    "window negative right": ({"window": (1, -1)}, "window", ("(1, -1)", "None is open")),
    "window a fraction": ({"window": (1.5, 0)}, "window", ("(1.5, 0)",)),
    "window infinite": ({"window": (float("inf"), 0)}, "window", ("(inf, 0)",)),
    "window of strs": ({"window": ("1", 0)}, "window", ("('1', 0)",)),
    "window nested": ({"window": ([1], 0)}, "window", ("([1], 0)",)),
    "scale nan": ({"scale": float("nan")}, "scale", ("got nan", "a finite float or None", "None is 1/sqrt(headdim)")),
    "scale inf": ({"scale": float("inf")}, "scale", ("got inf", "a finite float or None")),
    "scale a str": ({"scale": "1"}, "scale", ("'1'", "a finite float or None")),
    "scale a tensor": ({"scale": torch.tensor(1.0)}, "scale", ("tensor(1.)", "a finite float or None", "float(scale)")),
    "scale an array": ({"scale": Q.numpy()}, "scale", ("got ndarray", "a finite float or None")),
    "softcap 0": ({"softcap": 0.0}, "softcap", ("got 0.0", "a float > 0, or None", "None switches it off")),
    "softcap 0, an int": ({"softcap": 0}, "softcap", ("got 0", "None switches it off")),
    "softcap False": ({"softcap": False}, "softcap", ("None switches it off",)),
    "softcap negative": ({"softcap": -30.0}, "softcap", ("got -30.0", "a float > 0, or None")),
    "softcap nan": ({"softcap": float("nan")}, "softcap", ("got nan", "finite")),
    "softcap inf": ({"softcap": float("inf")}, "softcap", ("got inf", "finite")),
    "dropout_p 1": ({"dropout_p": 1.0}, "dropout_p", ("got 1.0", "a float in [0, 1)")),
    "dropout_p negative": ({"dropout_p": -0.1}, "dropout_p", ("got -0.1", "a float in [0, 1)", "0.0 switches it off")),
    "dropout_p nan": ({"dropout_p": float("nan")}, "dropout_p", ("got nan",)),
    "dropout_p None": ({"dropout_p": None}, "dropout_p", ("got None", "0.0 switches it off")),
    "dropout_p a str": ({"dropout_p": "0.5"}, "dropout_p", ("'0.5'",)),
    # Optional tensors.
    "mask of (batch, seqlen_k)": (
        {"mask": ones(2, 6, dtype=torch.bool)},
        "mask",
        ("shape (2, 6)", "(batch, nheads, seqlen_q, seqlen_k) = (2, 4, 5, 6)", "mask[:, None, None, :]"),
    ),
    "mask of (batch, seqlen_q, seqlen_k)": (
        {"mask": ones(2, 5, 6, dtype=torch.bool)},
        "mask",
        ("shape (2, 5, 6)", "mask[:, None]"),
    ),
    "mask of five dimensions": (
        {"mask": ones(1, 2, 4, 5, 6, dtype=torch.bool)},
        "mask",
        ("shape (1, 2, 4, 5, 6)", "broadcastable"),
    ),
    "mask of key-value heads": ({"mask": ones(2, 2, 5, 6, dtype=torch.bool)}, "mask", ("shape (2, 2, 5, 6)",)),
    "mask float": ({"mask": ones(5, 6)}, "mask", ("got float32", "want bool", "is bias=")),
    "mask of ones and zeros": ({"mask": ones(5, 6, dtype=torch.int64)}, "mask", ("int64", "want bool", "mask.bool()")),
    "mask a list": ({"mask": [[True]]}, "mask", ("got list", "a torch.Tensor or None")),
    "mask a bool": ({"mask": True}, "mask", ("got bool", "a torch.Tensor or None")),
    "bias bool": ({"bias": ones(5, 6, dtype=torch.bool)}, "bias", ("got bool", "floating-point", "is mask=")),
    "bias int": ({"bias": ones(5, 6, dtype=torch.int32)}, "bias", ("got int32", "floating-point")),
    "bias of (batch, seqlen_k)": ({"bias": ones(2, 6)}, "bias", ("shape (2, 6)", "bias[:, None, None, :]")),
    "bias a float": ({"bias": 1.0}, "bias", ("got float", "a torch.Tensor or None")),
    "sinks of another length": ({"sinks": ones(3)}, "sinks", ("shape (3,)", "(4,)")),
    "sinks of key-value heads": ({"sinks": ones(2)}, "sinks", ("shape (2,)", "(4,)")),
    "sinks of two dimensions": ({"sinks": ones(2, 4)}, "sinks", ("shape (2, 4)", "(nheads,) = (4,)")),
    "sinks with a batch": ({"sinks": ones(1, 4)}, "sinks", ("shape (1, 4)", "sinks.reshape(4)")),
    "sinks int": ({"sinks": ones(4, dtype=torch.int32)}, "sinks", ("got int32", "floating-point")),
    "sinks a float": ({"sinks": 0.0}, "sinks", ("got float", "a torch.Tensor or None")),
    "slopes 0": ({"alibi_slopes": torch.tensor([1.0, 0, 1, 1])}, "alibi_slopes", ("slope of 0.0", "slopes > 0")),
    "slopes negative": (
        {"alibi_slopes": -ones(4)},
        "alibi_slopes",
        ("slope of -1.0", "slopes > 0", "-slope * distance"),
    ),
    "slopes nan": ({"alibi_slopes": ones(4) * torch.nan}, "alibi_slopes", ("slope of nan", "slopes > 0")),
    "slopes float64": ({"alibi_slopes": ones(4, dtype=torch.float64)}, "alibi_slopes", ("float64", "want float32")),
    "slopes complex": ({"alibi_slopes": ones(4).to(torch.complex64)}, "alibi_slopes", ("complex64", "want float32")),
    "slopes of another length": (
        {"alibi_slopes": ones(2)},
        "alibi_slopes",
        ("shape (2,)", "(nheads,) = (4,) or (batch, nheads)"),
    ),
    "slopes that want a gradient": (
        {"alibi_slopes": ones(4).requires_grad_()},
        "alibi_slopes",
        ("requires grad", "Detach it"),
    ),
    "lengths past seqlen_k": (
        {"seqlens_k": torch.tensor([6, 7])},
        "seqlens_k",
        ("values from 6 to 7", "0 to seqlen_k, which is 6"),
    ),
    "lengths negative": ({"seqlens_k": torch.tensor([-1, 6])}, "seqlens_k", ("values from -1 to 6", "0 to seqlen_k")),
    "lengths float": ({"seqlens_k": ones(2)}, "seqlens_k", ("got float32", "int32 or int64", "seqlens_k.int()")),
    "lengths nan": ({"seqlens_k": ones(2) * torch.nan}, "seqlens_k", ("got float32", "int32 or int64")),
    "lengths int16": ({"seqlens_k": ones(2, dtype=torch.int16)}, "seqlens_k", ("got int16", "int32 or int64")),
    "lengths as a mask": ({"seqlens_k": ones(2, 6, dtype=torch.int64)}, "seqlens_k", ("shape (2, 6)", "(2,)")),
    "lengths for another batch": ({"seqlens_k": ones(3, dtype=torch.int64)}, "seqlens_k", ("shape (3,)", "(2,)")),
    "lengths a list": ({"seqlens_k": [6, 6]}, "seqlens_k", ("got list", "a torch.Tensor or None")),
}


def made(arguments: dict[str, Any]) -> Sample:
    given = {"q": Q, "k": K, "v": V, **arguments}
    return Sample((given.pop("q"), given.pop("k"), given.pop("v")), given, differentiable=(0, 1, 2))


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    return {
        name: Illegal(made(arguments), argument, said, beside(set(arguments) - set("qkv")))
        for name, (arguments, argument, said) in WRONG.items()
    }


def beside(names: set[str]) -> tuple[Sample, ...]:
    """The plain call, and legal ones with the arguments of these names, together and each alone."""
    legal = {name: LEGAL[name] for name in sorted(names)}
    kinds = [{}, legal, *({name: value} for name, value in legal.items())]
    return tuple(made({**kind, **lse}) for kind in kinds for lse in ({"return_lse": True}, {}))
