"""Every way to call `merge_attention` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.merge_attention.samples import parts
from sample import Illegal, Sample

import xattn

# Two parts of batch 2, seqlen 5, nheads 4, headdim 8.
OUTS, LSES = parts()
OUT, LSE = OUTS[0], LSES[0]

# (outs, lses, the argument that is named, parts of the message)
WRONG: dict[str, tuple[Any, Any, str, tuple[str, ...]]] = {
    # What is no list of tensors.
    "one tensor of outs": (torch.stack(OUTS), LSES, "outs", ("got Tensor", "outs.unbind()")),
    "one tensor of lses": (OUTS, torch.stack(LSES), "lses", ("got Tensor", "lses.unbind()")),
    "no parts": ([], [], "outs", ("got none", "at least one tensor")),
    "no lses": (OUTS, [], "lses", ("got none",)),
    "None": (None, LSES, "outs", ("got None",)),
    "a part that is None": ([OUT, None], LSES, "outs[1]", ("got None",)),
    "an lse that is None": (OUTS, [LSE, None], "lses[1]", ("got None",)),
    "an lse too few": (OUTS, [LSE], "lses", ("1 tensors", "2, one for each of outs")),
    "sparse": ([OUT.to_sparse(), OUT], LSES, "outs[0]", ("sparse",)),
    "outputs with their lse": ([xattn.AttentionOutput(OUT, LSE)] * 2, LSES, "outs[0]", ("Pass outs[0].out",)),
    # Shapes.
    "two dimensions": ([OUT[0, 0], OUT[0, 0]], LSES, "outs[0]", ("shape (4, 8)", "packed (tokens, nheads, headdim)")),
    "no dimension": ([OUT[..., :0]] * 2, LSES, "outs[0]", ("at least one head",)),
    "parts of other shapes": ([OUT, OUT[:1]], LSES, "outs[1]", ("(1, 5, 4, 8)", "the shape of outs[0]")),
    "lses with the heads last": (
        OUTS,
        [lse.transpose(1, 2) for lse in LSES],
        "lses[0]",
        ("shape (2, 5, 4)", "want (2, 4, 5)", "lses[0].transpose(-1, -2)", "out.transpose(-2, -3)"),
    ),
    "lses of other rows": (OUTS, [LSE, LSE[..., :3]], "lses[1]", ("shape (2, 4, 3)", "want (2, 4, 5)")),
    "lses of a packed call": (OUTS, [lse[0] for lse in LSES], "lses[0]", ("shape (4, 5)",)),
    "packed parts of other tokens": (
        [OUT[0], OUT[0, :3]],
        [lse[0] for lse in LSES],
        "outs[1]",
        ("(3, 4, 8)", "the shape of outs[0]"),
    ),
    "packed lses of other tokens": (
        [out[0] for out in OUTS],
        [LSE[0], LSE[0, :, :3]],
        "lses[1]",
        ("shape (4, 3)", "want (4, 5)"),
    ),
    # Dtypes and devices.
    "integers": ([OUT.int(), OUT.int()], LSES, "outs[0]", ("int32", "floating-point")),
    "parts of other dtypes": ([OUT, OUT.half()], LSES, "outs[1]", ("float16", "float32, the dtype of outs[0]")),
    "lses in another dtype": (OUTS, [LSE, LSE.double()], "lses[1]", ("float64", "want float32", "lses[1].float()")),
    "a part on another device": ([OUT, OUT.to("meta")], LSES, "outs[1]", ("device meta", "cpu")),
    "an lse on another device": (OUTS, [LSE, LSE.to("meta")], "lses[1]", ("device meta", "cpu")),
}


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    beside = (
        Sample((OUTS, LSES), differentiable=(0, 1)),
        Sample(([out[0] for out in OUTS], [lse[0] for lse in LSES]), differentiable=(0, 1)),
    )
    return {
        name: Illegal(Sample((outs, lses)), argument, said, beside)
        for name, (outs, lses, argument, said) in WRONG.items()
    }
