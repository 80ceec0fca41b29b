"""Whether a family is, in a scenario, what it ought to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import transformers
from families import formula
from families.models import Family
from families.scenarios import GRAPHS, Call, Outputs, Scenario
from torch import Tensor

from xattn.errors import InvalidArgumentError

HALF = torch.bfloat16
# Of float32, relative to the largest value.
TOLERANCE = 1e-4
# How much further from float32 than eager attention in bfloat16 xattn may be, in bfloat16, as a root of mean squares.
FURTHER = 1.5


@dataclass(frozen=True)
class Verdict:
    """kind: "equal"; "refused", by xattn; "stock", which transformers' own attention refuses or fails at; "fault".
    why: of the last three."""

    kind: str
    why: str = ""


def judge(family: Family, scenario: Scenario, implementation: str = "xattn") -> Verdict:
    """Of float32, and of bfloat16 where a scenario has it."""
    oracle = scenario.expected or scenario.run
    if not hasattr(transformers, family.model):
        return Verdict("stock", f"this release has no {family.model}")
    try:
        ours = Call(family, implementation)
        ours.model()
    except InvalidArgumentError as refusal:
        return Verdict("refused", str(refusal))
    try:
        stock = formula.outputs(scenario.run, Call(family, "eager"))
        expected = stock if scenario.expected is None else formula.outputs(scenario.expected, Call(family, "eager"))
    except Exception as error:
        return Verdict("stock", _said(error))
    try:
        got = scenario.run(ours)
    except InvalidArgumentError as refusal:
        return Verdict("refused", str(refusal))
    except Exception as error:
        return Verdict("fault", _said(error))
    if scenario.near is not None:
        # What was rounded is no nearer to the other rounded than to what was not.
        exact = formula.outputs(scenario.near, Call(family, "eager"))
        calls = [replace(call, forced=exact["tokens"]) for call in (Call(family, "eager"), ours)]
        fault = _further(scenario.run(calls[1]), formula.outputs(oracle, calls[0]), exact)
    else:
        fault = _unlike(got, expected)
    if fault and scenario.expected is not None and not _unlike(got, stock):
        return Verdict("stock", "packed sequences run into each other, by eager attention as well")
    if fault:
        return Verdict("fault", fault)
    if not scenario.half:
        return Verdict("equal")
    calls = [replace(call, dtype=HALF, forced=expected.get("tokens")) for call in (Call(family, "eager"), ours)]
    fault = _further(scenario.run(calls[1]), formula.outputs(oracle, calls[0]), expected)
    return Verdict("fault", fault) if fault else Verdict("equal")


def _said(error: Exception) -> str:
    """Its first sentence: what follows may tell of a set, in any order."""
    first = str(error).partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {first}"


def _floats(outputs: Outputs) -> dict[str, Tensor]:
    """Those that are more than rounding: the gradient of a key's bias is 0."""
    floats = {name: item for name, item in outputs.items() if item.is_floating_point()}
    largest = max((_size(item) for item in floats.values()), default=0.0)
    return {name: item for name, item in floats.items() if _size(item) > 1e-3 * largest}


def _unlike(got: Outputs, expected: Outputs) -> str:
    if got.keys() != expected.keys():
        return f"{sorted(got)} instead of {sorted(expected)}"
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape:
            return f"{name}: {tuple(have.shape)} instead of {tuple(want.shape)}"
        alike = bool(have <= want) if name == GRAPHS else torch.equal(have, want)
        if not want.is_floating_point() and not alike:
            return f"{name}: {have.tolist()} instead of {want.tolist()}"
    for name, want in _floats(expected).items():
        off = float((got[name] - want).abs().max() / want.abs().max())
        if not off <= TOLERANCE:
            return f"{name}: off by {off:.0e}"
    return ""


def _further(ours: Outputs, stock: Outputs, exact: Outputs) -> str:
    """Over all tensors, each by its own size: gradients are many, and each is a few numbers alone."""
    floats = _floats(exact)
    off = {
        who: sum(_size(out[name].float() - want) / _size(want) for name, want in floats.items()) / len(floats)
        for who, out in (("ours", ours), ("stock", stock))
    }
    if off["ours"] <= FURTHER * off["stock"] + 1e-3:
        return ""
    return f"off by {off['ours']:.0e}, eager attention by {off['stock']:.0e}"


def _size(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.double().square().mean()))
