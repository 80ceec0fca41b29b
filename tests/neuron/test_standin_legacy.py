"""Traps of both kernels named flash_fwd, and of flash_attn_bwd: each alone makes an adapter fail that is right without
it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from neuron.kernel_cases import Row, failures
from torch import Tensor
from torch.autograd import Function
from xattn_conformance.ops.call import execute
from xattn_conformance.profiles.load import find
from xattn_conformance.profiles.schema import parse
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_elsewhere.nki import standin
from xattn_elsewhere.nki.standin import flash_neuronxcc as neuronxcc
from xattn_elsewhere.nki.standin import flash_nxdi as nxdi

from xattn import AttentionOutput, UnsupportedError

Given = Mapping[str, Any]
Arguments = dict[str, Any]
Edit = Callable[[Arguments, Given], Any]


def dims_first(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def rows(tiles: Tensor) -> Tensor:
    return tiles.mT.flatten(2)


def arguments_of(given: Given) -> Arguments:
    """Of either kernel. Keys added behind the last query are hidden where that is causal; elsewhere none are added."""
    q, k, v, scale = given["q"], given["k"], given["v"], given["scale"]
    left, right = given["window"] or (None, None)
    causal = given["causal"] or right == 0
    more = [(-x.shape[1]) % multiple for x, multiple in ((q, 128), (k, 512))]
    if not causal:
        more[1] = 0
    k, v = (F.pad(x, [0, 0, 0, 0, 0, more[1]]) for x in (k, v))
    return {
        "grid": (q.shape[0], k.shape[2]),
        "q": dims_first(F.pad(q, [0, 0, 0, 0, 0, more[0]])),
        "k": dims_first(k),
        "v": v.transpose(1, 2).contiguous(),
        "softmax_scale": scale,
        "use_causal_mask": causal,
        "left": left,
        "mixed_precision": q.dtype != torch.float32,
    }


def nothing(arguments: Arguments, given: Given) -> None:
    return None


@dataclass(frozen=True)
class Nxdi:
    edit: Edit = nothing

    def __call__(self, op: str, given: Given, backend: str) -> Tensor:
        arguments = arguments_of(given)
        left = arguments.pop("left")
        arguments |= {"window_size": (-2 if left is None else left, -1), "config": nxdi.FlashConfig(seq_tile_size=512)}
        self.edit(arguments, given)
        out: Tensor = nxdi.flash_fwd[arguments.pop("grid")](**arguments)
        return out[:, :, : given["q"].shape[1]].transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Neuronxcc:
    """forward, backward: what is wrong with the arguments. untile: (batch, nheads, 128, tiles) to rows."""

    forward: Edit = nothing
    backward: Edit = nothing
    untile: Callable[[Tensor], Tensor] = rows

    def __call__(self, op: str, given: Given, backend: str) -> Tensor | AttentionOutput:
        out, lse = _Attend.apply(self, given, *(given[name] for name in "qkv"))  # type: ignore[no-untyped-call]
        return AttentionOutput(out, lse) if given["return_lse"] else out

    def run(self, given: Given) -> tuple[Tensor, Tensor]:
        arguments = arguments_of(given)
        left = arguments.pop("left")
        arguments |= {"seed": None, "sliding_window": -1 if left is None else left + 1}
        arguments["config"] = neuronxcc.FlashConfig(seq_tile_size=512)
        if given.get("bias") is not None:
            arguments["logit_bias"] = given["bias"][None, None].contiguous()
        self.forward(arguments, given)
        out, lse = neuronxcc.flash_fwd[arguments.pop("grid")](**arguments)
        seqlen_q = given["q"].shape[1]
        return out[:, :, :seqlen_q].transpose(1, 2).contiguous(), self.untile(lse)[:, :, :seqlen_q]


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, adapter: Neuronxcc, given: Given, *tensors: Tensor) -> Any:
        ctx.adapter, ctx.given, (out, lse) = adapter, given, adapter.run(given)
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> Any:
        given, (out, lse) = ctx.given, ctx.saved_tensors
        tensors = ("q_ref", given["q"]), ("k_ref", given["k"]), ("v_ref", given["v"]), ("o_ref", out), ("dy_ref", dout)
        arguments: Arguments = {name: dims_first(x) for name, x in tensors}
        arguments |= {
            "lse_ref": lse.unflatten(2, (-1, 128)).mT.contiguous(),
            "seed_ref": None,
            "use_causal_mask": given["causal"],
            "mixed_precision": True,
            "softmax_scale": given["scale"],
            "grid": (out.shape[0], given["k"].shape[2]),
        }
        ctx.adapter.backward(arguments, given)
        grads = neuronxcc.flash_attn_bwd[arguments.pop("grid")](**arguments)
        return None, None, *(x.permute(0, 3, 1, 2) for x in grads)


def without(name: str) -> Edit:
    return lambda arguments, given: arguments.pop(name)


def with_(**values: Any) -> Edit:
    return lambda arguments, given: arguments.update(values)


def of_q_heads(arguments: Arguments, given: Given) -> None:
    arguments["grid"] = given["q"].shape[0], given["q"].shape[2]


def unpadded(arguments: Arguments, given: Given) -> None:
    arguments["q"] = dims_first(given["q"])


def left_as_window(arguments: Arguments, given: Given) -> None:
    arguments["sliding_window"] -= 1


def window_as_left(arguments: Arguments, given: Given) -> None:
    arguments["window_size"] = (arguments["window_size"][0] + 1, -1)


@dataclass(frozen=True)
class Trap:
    """As in the tests of the NKI library's stand-in."""

    name: str
    row: Row
    adapter: Nxdi | Neuronxcc
    raises: type[Exception] | None = None
    served: bool = True


def row(shape: str, family: str = "normal", dtype: str = "bfloat16", grads: str = "", **options: Any) -> Row:
    if grads:
        options["return_lse"] = False
    return Row(shape, tuple(options.items()), family, dtype, grads)


# NxDI's has no lse.
CAUSAL = row("b2 q256 k256 h4 g2 d64", causal=True, return_lse=False)
FULL = row("b1 q128 k512 h2 d64", return_lse=False)
WINDOW = row("b1 q200 k200 h2 d64", causal=True, window="15:0", return_lse=False)
SELF = row("b1 q512 k512 h2 d32", "needle", window="0:0", return_lse=False)
LSE = row("b1 q200 k200 h4 g2 d64", causal=True)
SCALED = row("b1 q128 k512 h2 d32", grads="qkv", scale=0.3)

TRAPS = [
    Trap("NxDI's default window", CAUSAL, Nxdi(without("window_size")), UnboundLocalError),
    Trap("NxDI's default window, not causal", FULL, Nxdi(with_(window_size=(-1, -1))), UnboundLocalError, False),
    Trap("NxDI without a window, not causal", FULL, Nxdi(), UnboundLocalError, False),
    Trap("NxDI's window of all keys forces causal", FULL, Nxdi(with_(window_size=(512, -1))), None, False),
    Trap("NxDI's window 0 forces nothing", SELF, Nxdi(with_(use_causal_mask=False))),
    Trap("NxDI's left side leaves the query out", WINDOW, Nxdi(window_as_left)),
    Trap("NxDI has no right side of 0", WINDOW, Nxdi(with_(window_size=(15, 0))), AssertionError),
    Trap("NxDI's queries past the last tile", WINDOW, Nxdi(unpadded)),
    Trap("NxDI's tiles of 2048 keys", CAUSAL, Nxdi(without("config")), AssertionError),
    Trap("NxDI's grid counts heads of keys", CAUSAL, Nxdi(of_q_heads), IndexError),
    Trap("NxDI's grid has two sides", CAUSAL, Nxdi(with_(grid=(4,))), AssertionError),
    Trap("NxDI takes a scale of 0 for none", row("b1 q128 k128 h2 d64", causal=True, scale=0.0, return_lse=False),
         Nxdi(), None, False),
    Trap("NxDI multiplies float32 in bfloat16", row("b1 q128 k128 h2 d64", dtype="float32", causal=True,
         return_lse=False), Nxdi(without("mixed_precision"))),
    Trap("NxDI's headdim 192", row("b1 q128 k128 h2 d192", causal=True, return_lse=False), Nxdi(), AssertionError,
         False),
    Trap("the diagonal begins at the top left", row("b1 q128 k193 h2 d64", "needle", causal=True), Neuronxcc(), None,
         False),
    Trap("causal by default", row("b1 q128 k512 h2 d64"), Neuronxcc(without("use_causal_mask"))),
    Trap("the window counts the query itself", row("b1 q200 k200 h2 d64", causal=True, window="15:0"),
         Neuronxcc(left_as_window)),
    Trap("windows force causal", row("b1 q128 k512 h2 d64", window="15:open"),
         Neuronxcc(with_(sliding_window=16)), None, False),
    Trap("a window beside a bias", row("b1 q512 k512 h2 d32", causal=True, window="15:0", bias="matrix"), Neuronxcc(),
         None, False),
    Trap("rows of lse lie in tiles", LSE, Neuronxcc(untile=lambda x: x.flatten(2))),
    Trap("queries past the last tile", LSE, Neuronxcc(unpadded)),
    Trap("a grid of all heads", LSE, Neuronxcc(of_q_heads), IndexError),
    Trap("the scale 0 is none", row("b1 q128 k128 h2 d64", causal=True, scale=0.0), Neuronxcc(), None, False),
    Trap("float32 in bfloat16 by default", row("b1 q128 k128 h2 d64", dtype="float32", causal=True),
         Neuronxcc(without("mixed_precision")), None, False),
    Trap("float32 is divided by a rounded lse", row("b1 q128 k128 h3 d64", "huge", dtype="float32", causal=True),
         Neuronxcc(), None, False),
    Trap("keys that no tile divides", row("b1 q128 k200 h2 d64"), Neuronxcc(), AssertionError, False),
    Trap("the backward is not causal by default",
         row("b1 q512 k512 h2 d64", grads="qkv", causal=True),
         Neuronxcc(backward=without("use_causal_mask"))),
    Trap("the backward's scale by default", SCALED, Neuronxcc(backward=without("softmax_scale"))),
    Trap("the backward wants (d, seqlen)", row("b1 q128 k512 h2 d64", grads="qkv"),
         Neuronxcc(backward=lambda arguments, given: arguments.update(v_ref=arguments["v_ref"].mT.contiguous())),
         AssertionError),
    Trap("the backward's grid", row("b1 q128 k512 h4 g2 d32", grads="qkv"),
         Neuronxcc(backward=of_q_heads), IndexError),
    Trap("the backward sums in bfloat16 by default", row("b1 q128 k512 h2 d32", grads="qkv"),
         Neuronxcc(backward=without("mixed_precision"))),
]  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_the_trap_is_sprung(trap: Trap) -> None:
    if trap.raises is not None:
        with pytest.raises(trap.raises):
            failures(trap.row, trap.adapter)
    else:
        assert failures(trap.row, trap.adapter) != []


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if trap.served], ids=lambda trap: trap.name)
def test_without_the_trap_the_adapter_is_right(trap: Trap) -> None:
    assert failures(trap.row, type(trap.adapter)()) == []


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_the_backend_is_right_or_declines(trap: Trap) -> None:
    standin.install("nxdi" if isinstance(trap.adapter, Nxdi) else "legacy")
    try:
        found = failures(trap.row, execute, "nki-legacy")
    except UnsupportedError:
        assert not trap.served
    else:
        assert found == []


LARGER = [
    Row("b1 q512 k512 h2 d32", (("causal", True), ("return_lse", False)), "normal", "bfloat16", "qkv"),
    Row("b1 q512 k512 h2 d128", (("return_lse", False),), "normal", "bfloat16", "qkv"),
    Row("b1 q512 k512 h2 d128", (("return_lse", False),), "positive", "bfloat16", "qkv"),
    Row("b1 q512 k512 h4 g2 d64", (("window", "100:0"), ("return_lse", False)), "normal", "bfloat16", "qkv"),
]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("row", LARGER, ids=str)
def test_gradients_are_right_with_what_the_profile_declares(row: Row) -> None:
    """legacy-bwd-rounds-scores-and-dp: without the declarations some of these fail."""
    standin.install("legacy")
    text, _ = find("nki-legacy")
    assert failures(row, execute, "nki-legacy", parse(text).arithmetic) == []


def test_the_declarations_are_needed(clean: None) -> None:
    standin.install("legacy")
    assert any(failures(row, execute, "nki-legacy", Arithmetic(scaled_q=True)) for row in LARGER)
