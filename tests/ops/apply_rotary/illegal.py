"""Every way to call `apply_rotary` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.apply_rotary.rotary_calls import tensors
from sample import Illegal, Sample
from torch import Tensor

# batch 2, seqlen 5, nheads 4, nheads_k 2, headdim and rotary_dim 16.
Q, K, COS, SIN = tensors()
HALVES = Q.half(), K.half()


def doubled(x: Tensor) -> Tensor:
    return torch.cat((x, x), -1)


def bnsh(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


# (the arguments in place, the one that is named, parts of the message)
WRONG: dict[str, tuple[tuple[Any, ...], str, tuple[str, ...]]] = {
    # What is no tensor of four dimensions.
    "q a list": (([1.0], K, COS, SIN), "q", ("got list, want a torch.Tensor",)),
    "k a list": ((Q, [1.0], COS, SIN), "k", ("got list, want a torch.Tensor",)),
    "cos None": ((Q, K, None, SIN), "cos", ("got None, want a torch.Tensor",)),
    "q packed": ((Q[0], K, COS, SIN), "q", ("pass q[None]",)),
    "q sparse": ((Q.to_sparse(), K, COS, SIN), "q", ("sparse", "strided")),
    "q without heads": ((Q[:, :, :0], K, COS, SIN), "q", ("at least one head",)),
    "q strided": ((Q.transpose(2, 3), K, COS, SIN), "q", ("Call q.contiguous",)),
    # Dtypes and devices.
    "integers": ((Q.int(), K, COS, SIN), "q", ("got int32, want float64, float32, float16, bfloat16. Cast q first",)),
    "k of another dtype": ((Q, K.half(), COS, SIN), "k", ("float16", "float32, the dtype of q")),
    "k on another device": ((Q, K.to("meta"), COS, SIN), "k", ("device meta, want cpu",)),
    "cos on another device": ((Q, K, COS.to("meta"), SIN), "cos", ("device meta, want cpu, the device of q",)),
    "a narrower table": ((Q, K, COS.half(), SIN.half()), "cos", ("got float16, want float32. Pass cos.float()",)),
    "another narrow table": (
        (*HALVES, COS.bfloat16(), SIN),
        "cos",
        ("got bfloat16, want float32 or float16, the dtype of q",),
    ),
    "sin of another dtype": ((*HALVES, COS, SIN.half()), "sin", ("float32, the dtype of cos",)),
    "a complex table": ((Q, K, torch.complex(COS, SIN), SIN), "cos", ("cos=cos.real",)),
    # Shapes that do not fit together.
    "batch of k": ((Q, K[:1], COS, SIN), "k", ("batch 1, want 2, the batch of q",)),
    "seqlen of k": ((Q, K[:, :3], COS, SIN), "k", ("apply_rotary(k, None, cos_k, sin_k)",)),
    "headdim of k": ((Q, K[..., :8].contiguous(), COS, SIN), "k", ("headdim 8, want 16",)),
    "BNSH": (
        (bnsh(Q), bnsh(K), COS, SIN),
        "k",
        ("look like (batch, nheads, seqlen, headdim): pass x.transpose(1, 2)",),
    ),
    "BNSH of equal heads": ((bnsh(Q), bnsh(Q), COS, SIN), "cos", ("looks like (batch, nheads, seqlen, headdim)",)),
    "BNSH of q alone": ((bnsh(Q), None, COS, SIN), "cos", ("looks like (batch, nheads, seqlen, headdim)",)),
    "shape of sin": ((Q, K, COS, SIN[:, :4].contiguous()), "sin", ("the shape of cos",)),
    # Tables in another form.
    "each value twice": (
        (Q, K, doubled(COS), doubled(SIN)),
        "cos",
        ("Hugging Face", "cos[..., : headdim // 2]"),
    ),
    "each value twice, a row for all": (
        (Q, K, doubled(COS)[None], doubled(SIN)[None]),
        "cos",
        ("Hugging Face", "cos[..., : headdim // 2]"),
    ),
    "each value twice, rows": (
        (Q, K, doubled(COS).expand(2, -1, -1), doubled(SIN).expand(2, -1, -1)),
        "cos",
        ("Hugging Face",),
    ),
    "part of each value twice": (
        (Q, K, doubled(COS)[:, :12].contiguous(), SIN),
        "cos",
        ("each value twice is halved",),
    ),
    "one row for all": ((Q, K, COS[None], SIN[None]), "cos", ("pass cos[0]",)),
    "a dimension of heads": ((Q, K, COS[:, None], SIN[:, None]), "cos", ("shape (5, 1, 8)",)),
    "dimensions of batch and heads": (
        (Q, K, COS[None, :, None], SIN[None, :, None]),
        "cos",
        ("without the dimension of heads",),
    ),
    "all positions": ((Q, K, torch.zeros(9, 8), torch.zeros(9, 8)), "cos", ("cos[positions]",)),
    "no width": ((Q, K, COS[:, :0], SIN[:, :0]), "cos", ("rotary_dim from 2 to 16",)),
    "one dimension": ((Q, K, COS[:, 0], SIN[:, 0]), "cos", ("shape (5,)",)),
    "cos strided": ((Q, K, COS.t().contiguous().t(), SIN), "cos", ("Call cos.contiguous",)),
    # Gradients.
    "cos wants a gradient": ((Q, K, COS.clone().requires_grad_(), SIN), "cos", ("Detach it",)),
    "sin wants a gradient": ((Q, K, COS, SIN.clone().requires_grad_()), "sin", ("Detach it",)),
}
NOT_FLAGS = {"2": 2, "None": None, "a str": "neox", "a tensor": torch.zeros(2)}


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    plain = Sample((Q, K, COS, SIN), differentiable=(0, 1))
    found = {name: Illegal(Sample(given), argument, said, (plain,)) for name, (given, argument, said) in WRONG.items()}
    turned = Sample(plain.tensors, {"interleaved": True})
    for name, value in NOT_FLAGS.items():
        call = Sample(plain.tensors, {"interleaved": value})
        found[f"interleaved {name}"] = Illegal(call, "interleaved", ("True or False",), (plain, turned))
    return found
