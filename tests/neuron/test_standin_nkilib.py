"""Traps of attention_cte and attention_bwd: each alone makes an adapter fail that is right without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from neuron.kernel_cases import Row, failures
from torch import Tensor
from torch.autograd import Function
from xattn_conformance.ops.call import execute
from xattn_elsewhere.nki import standin
from xattn_elsewhere.nki.standin.nkilib_bwd import attention_bwd
from xattn_elsewhere.nki.standin.nkilib_cte import attention_cte

from xattn import AttentionOutput, UnsupportedError

Given = Mapping[str, Any]
Arguments = dict[str, Any]


def fold(x: Tensor) -> Tensor:
    """(batch, seqlen, nheads, headdim) to (batch * nheads, seqlen, headdim)."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def dims_first(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def rows(tiles: Tensor) -> Tensor:
    """(batch * nheads, 128, tiles) to (batch * nheads, seqlen)."""
    return tiles.mT.flatten(1)


def forward_arguments(given: Given) -> Arguments:
    q, k, v, scale = given["q"], given["k"], given["v"], given["scale"]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    left, right = given["window"] or (None, None)
    causal = given["causal"] or right == 0
    prior = k.shape[1] - q.shape[1] if causal and given["align"] == "bottom_right" else 0
    # What no query sees may hold NaN.
    end = q.shape[1] + prior if causal else k.shape[1]
    k, v = k[:, :end], v[:, :end]
    found: Arguments = {"q": fold(q), "scale": scale, "causal_mask": causal, "tp_k": True}
    found["cache_softmax"] = given["return_lse"] or q.requires_grad
    found |= {"k": fold(k[:, prior:]), "v": fold(v[:, prior:]), "sliding_window": None if left is None else left + 1}
    if prior or left is not None:
        found |= {"q": found["q"] * scale, "scale": 1.0}
    if prior:
        used = torch.tensor([prior], dtype=torch.int32)
        found |= {"k_prior": fold(k[:, :prior]), "v_prior": fold(v[:, :prior]), "prior_used_len": used}
    if given.get("sinks") is not None:
        found["sink"] = given["sinks"].repeat(q.shape[0])[:, None]
    return found


def backward_arguments(given: Given, out: Tensor, lse: Tensor, dout: Tensor) -> Arguments:
    heads_first = ("q_ref", given["q"]), ("k_ref", given["k"]), ("v_ref", given["v"]), ("o_ref", out), ("dy_ref", dout)
    found: Arguments = {name: dims_first(x) for name, x in heads_first}
    left, _ = given["window"] or (None, None)
    found |= {
        "lse_ref": lse.unflatten(2, (-1, 128)).mT.contiguous(),
        "use_causal_mask": given["causal"],
        "mixed_precision": True,
        "softmax_scale": given["scale"],
        "sliding_window": None if left is None else left + 1,
    }
    if given.get("sinks") is not None:
        found["sinks_ref"] = given["sinks"].expand(out.shape[0], -1).contiguous()
    return found


@dataclass(frozen=True)
class Adapter:
    """forward, backward: what is wrong with the arguments. untile: (batch * nheads, 128, tiles) to rows."""

    forward: Callable[[Arguments, Given], Any] = lambda arguments, given: None
    backward: Callable[[Arguments, Given], Any] = lambda arguments, given: None
    untile: Callable[[Tensor], Tensor] = rows
    lse: Callable[[Tensor, Tensor], Tensor] = lambda neg_max, sum_recip: -neg_max - torch.log(sum_recip)

    def __call__(self, op: str, given: Given, backend: str) -> Tensor | AttentionOutput:
        tensors = [x for x in (given["q"], given["k"], given["v"], given.get("sinks")) if x is not None]
        out, lse = _Attend.apply(self, given, *tensors)  # type: ignore[no-untyped-call]
        return AttentionOutput(out, lse) if given["return_lse"] else out

    def run(self, given: Given) -> tuple[Tensor, Tensor]:
        arguments = forward_arguments(given)
        self.forward(arguments, given)
        found = attention_cte[2](**arguments)
        out, stats = (found[0], found[1:]) if arguments["cache_softmax"] else (found, None)
        batch = given["q"].shape[0]
        out = out.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()
        if stats is None:
            return out, torch.empty(0)
        return out, self.lse(*(self.untile(each) for each in stats)).unflatten(0, (batch, -1))


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, adapter: Adapter, given: Given, *tensors: Tensor) -> Any:
        ctx.adapter, ctx.given, (out, lse) = adapter, given, adapter.run(given)
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> Any:
        out, lse = ctx.saved_tensors
        arguments = backward_arguments(ctx.given, out, lse, dout)
        ctx.adapter.backward(arguments, ctx.given)
        dq, dk, dv, *dsinks = attention_bwd[2](**arguments)
        return None, None, *(x.permute(0, 3, 1, 2) for x in (dq, dk, dv)), *(x.sum(0) for x in dsinks)


def without(*names: str) -> Callable[[Arguments, Given], None]:
    def edit(arguments: Arguments, given: Given) -> None:
        for name in names:
            arguments.pop(name, None)

    return edit


def with_(**values: Any) -> Callable[[Arguments, Given], None]:
    return lambda arguments, given: arguments.update(values)


def top_left(arguments: Arguments, given: Given) -> None:
    without("k_prior", "v_prior", "prior_used_len")(arguments, given)
    arguments.update(k=fold(given["k"]), v=fold(given["v"]))


def whole(arguments: Arguments, given: Given) -> None:
    arguments.update(k=fold(given["k"]), v=fold(given["v"]))


@dataclass(frozen=True)
class Trap:
    """row: a case that springs it. raises: what that looks like; None where the numbers are wrong.
    served: False where this adapter knows no right way."""

    name: str
    row: Row
    adapter: Adapter
    raises: type[Exception] | None = None
    served: bool = True


CAUSAL = Row("b2 q128 k128 h4 g2 d64")
WINDOW = Row("b1 q256 k256 h2 d64", (("causal", True), ("window", "15:0")))
FULL = Row("b2 q128 k257 h4 g2 d64", ())
PRIOR = Row("b2 q128 k193 h4 g2 d64", family="needle")
SINKS = Row("b2 q128 k128 h4 g2 d64", (("sinks", "log"),))
GRADS = Row("b2 q128 k128 h4 g2 d64", (("causal", True), ("return_lse", False)), grads="qkv")
GRADS_SINKS = Row(
    "b2 q128 k128 h4 g2 d64", (("causal", True), ("sinks", "normal"), ("return_lse", False)), grads="qkv sinks"
)
SCALED = Row("b1 q128 k128 h2 d64", (("causal", True), ("scale", 0.3), ("return_lse", False)), grads="qkv")


def off_by_one(arguments: Arguments, given: Given) -> None:
    arguments["sliding_window"] -= 1


def half_scale(arguments: Arguments, given: Given) -> None:
    arguments.update(q=fold(given["q"]), scale=0.125)


def sinks_of_one_row(name: str, shape: tuple[int, ...]) -> Callable[[Arguments, Given], None]:
    return lambda arguments, given: arguments.update({name: given["sinks"].reshape(shape)})


TRAPS = [
    Trap("the scale is 1.0 by default", CAUSAL, Adapter(without("scale"))),
    Trap("causal by default", FULL, Adapter(without("causal_mask"))),
    Trap("a scale beside a window", WINDOW, Adapter(half_scale), AssertionError),
    Trap("a scale beside a prior", PRIOR, Adapter(half_scale), AssertionError),
    Trap("k is (d, seqlen) by default", CAUSAL, Adapter(without("tp_k")), AssertionError),
    Trap(
        "k is (d, seqlen) by default, where seqlen is d",
        Row("b2 q128 k128 h4 g2 d128", ()),
        Adapter(without("tp_k")),
    ),
    Trap("q is (seqlen, d) by default", CAUSAL, Adapter(with_(tp_q=False)), AssertionError),
    Trap("the diagonal begins at the top left", PRIOR, Adapter(top_left)),
    Trap("all of the prior is not used", PRIOR, Adapter(with_(prior_used_len=torch.tensor([64])))),
    Trap(
        "one prior length for the batch", PRIOR, Adapter(with_(prior_used_len=torch.tensor([65, 65]))), AssertionError
    ),
    Trap("the window counts the query itself", WINDOW, Adapter(off_by_one)),
    Trap(
        "a window of 0 is none",
        Row("b1 q128 k128 h2 d64", (("causal", True), ("window", "0:0"))),
        Adapter(off_by_one),
    ),
    Trap("windows are causal", WINDOW, Adapter(with_(causal_mask=False)), AssertionError),
    Trap("sinks by batch row and head", SINKS, Adapter(sinks_of_one_row("sink", (-1, 1))), IndexError),
    Trap("sinks left out", SINKS, Adapter(without("sink"))),
    Trap("rows of lse lie in tiles", Row("b1 q256 k256 h2 d64"), Adapter(untile=lambda x: x.flatten(1))),
    Trap("the maximum is negative", CAUSAL, Adapter(lse=lambda top, recip: top - torch.log(recip))),
    Trap("the sum is a reciprocal", CAUSAL, Adapter(lse=lambda top, recip: -top + torch.log(recip))),
    Trap("lse of odd lengths", Row("b1 q129 k129 h2 d64"), Adapter(), AssertionError, False),
    Trap("headdim 192", Row("b1 q128 k128 h2 d192"), Adapter(), AssertionError, False),
    Trap("600 heads", Row("b1 q128 k128 h600 d8"), Adapter(), AssertionError, False),
    Trap("float32 is multiplied in bfloat16", Row("b1 q128 k128 h2 d64", dtype="float32"), Adapter(), None, False),
    Trap(
        "a scale of 0 unmasks", Row("b1 q128 k128 h2 d64", (("causal", True), ("scale", 0.0))), Adapter(), None, False
    ),
    Trap(
        "a negative scale unmasks",
        Row("b1 q128 k128 h2 d64", (("causal", True), ("scale", -0.5))),
        Adapter(),
        None,
        False,
    ),
    Trap(
        "hidden keys are multiplied by 0",
        Row("b1 q100 k193 h2 d64", (("causal", True), ("align", "top_left"), ("return_lse", False)), "poison"),
        Adapter(whole),
    ),
    Trap("the backward is not causal by default", GRADS, Adapter(backward=without("use_causal_mask"))),
    Trap("the backward sums in bfloat16 by default", GRADS, Adapter(backward=without("mixed_precision"))),
    Trap("the backward has another scale by default", SCALED, Adapter(backward=without("softmax_scale"))),
    Trap(
        "the backward takes a scale of 0 for none",
        Row("b1 q128 k128 h2 d64", (("scale", 0.0), ("return_lse", False)), grads="qkv"),
        Adapter(),
        None,
        False,
    ),
    Trap(
        "the backward wants (d, seqlen)",
        Row("b2 q128 k128 h4 g2 d128", (("causal", True), ("return_lse", False)), grads="qkv"),
        Adapter(backward=lambda arguments, given: arguments.update(q_ref=arguments["q_ref"].mT.contiguous())),
    ),
    Trap(
        "the backward of odd lengths",
        Row("b1 q128 k384 h2 d64", (("return_lse", False),), grads="qkv"),
        Adapter(),
        AssertionError,
        False,
    ),
    Trap(
        "the backward's causal is square",
        Row("b1 q128 k256 h2 d64", (("causal", True), ("align", "top_left"), ("return_lse", False)), grads="qkv"),
        Adapter(),
        AssertionError,
        False,
    ),
    Trap(
        "the backward's sinks by batch row",
        GRADS_SINKS,
        Adapter(backward=sinks_of_one_row("sinks_ref", (1, -1))),
        AssertionError,
    ),
]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_the_trap_is_sprung(trap: Trap) -> None:
    if trap.raises is not None:
        with pytest.raises(trap.raises):
            failures(trap.row, trap.adapter)
    else:
        assert failures(trap.row, trap.adapter) != []


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if trap.served], ids=lambda trap: trap.name)
def test_without_the_trap_the_adapter_is_right(trap: Trap) -> None:
    assert failures(trap.row, Adapter()) == []


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_the_backend_is_right_or_declines(trap: Trap) -> None:
    standin.install("cte")
    try:
        found = failures(trap.row, execute, "nki")
    except UnsupportedError:
        assert not trap.served
    else:
        assert found == []
