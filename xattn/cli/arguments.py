"""A call of any op out of its name and NAME=VALUE words: `apply_rotary q=2,16,8,64 ... interleaved=true`.

What a VALUE stands for follows from the type that the op declares for the argument:

    a tensor          sizes, then its dtype, and whether a gradient is wanted: 2,16,8,64 or 16,32:float32 or 8:bf16:grad
    several tensors   the same with + between: 2,16,8,64+2,16,8,64
    anything else     true, false, none, a number, a word, or several of these with commas between
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

import torch
import typer
from torch import Tensor

from xattn.cli import values
from xattn.cli.request import NOWHERE
from xattn.dispatch.op import Op
from xattn.ops.table import DEFAULT, OPS

_WORDS = {"true": True, "false": False, "none": None}


def split(words: Sequence[str]) -> tuple[Op, list[str]]:
    """The op, and the words that follow its name; without a name it is the default one."""
    if not words or "=" in words[0]:
        return DEFAULT, list(words)
    name, *rest = words
    if name not in OPS:
        close = difflib.get_close_matches(name, OPS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        text = f"there is no op {name!r}.{hint} There are: {', '.join(OPS)}"
        raise typer.BadParameter(text, param_hint="OP")
    return OPS[name], rest


def arguments_of(op: Op, words: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of the op's function, by name, with tensors that hold no data; `dtype` is of tensors whose word
    names none."""
    parameters = inspect.signature(op.prepare, eval_str=True).parameters
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"{word!r} is not NAME=VALUE", param_hint=op.name)
        if name not in parameters:
            text = f"there is no argument {name!r}; the arguments are: {', '.join(parameters)}"
            raise typer.BadParameter(text, param_hint=op.name)
        if name in found:
            raise typer.BadParameter("given twice", param_hint=name)
        found[name] = _value(name, text, _alternatives(parameters[name].annotation), dtype)
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in found]:
        text = f"{', '.join(missing)} missing; the arguments are: {', '.join(parameters)}"
        raise typer.BadParameter(text, param_hint=op.name)
    return found


def _alternatives(annotation: Any) -> set[Any]:
    """The types of a union, or the only one."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {each for one in get_args(annotation) for each in _alternatives(one)}
    return {annotation}


def _value(name: str, text: str, alternatives: set[Any], dtype: torch.dtype) -> Any:
    if text.lower() == "none":
        return None
    if any(Tensor in get_args(each) for each in alternatives):
        return [_tensor(name, part, dtype) for part in text.split("+")]
    if Tensor in alternatives:
        others = alternatives - {Tensor, types.NoneType}
        # Where a number or a name may stand as well, a shape is what looks like nothing else.
        if not others or "," in text or ":" in text:
            return _tensor(name, text, dtype)
    return values.dtype(text, name) if torch.dtype in alternatives else _literal(text)


def _tensor(name: str, text: str, dtype: torch.dtype) -> Tensor:
    shape, *marks = text.split(":")
    grad = "grad" in marks
    dtypes = [values.dtype(mark, name) for mark in marks if mark != "grad"]
    if len(dtypes) > 1:
        raise typer.BadParameter(f"{text!r} has two dtypes", param_hint=name)
    dtype = dtypes[0] if dtypes else dtype
    if grad and not dtype.is_floating_point:
        raise typer.BadParameter(f"{text!r} is of whole numbers or bools, which have no gradient", param_hint=name)
    # A shape of no sizes is a number in a tensor.
    return torch.empty(values.sizes(shape, name) if shape else (), dtype=dtype, device=NOWHERE, requires_grad=grad)


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if "," in text:
        return tuple(map(_literal, text.split(",")))
    number = values.number(text)
    return text.strip("'\"") if number is None else number
