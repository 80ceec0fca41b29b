"""One attention call out of command-line options: as a request for any device, or with tensors on this machine's."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import torch
import typer
from torch import Tensor

from xattn.dispatch.choice import Choice, chosen
from xattn.dispatch.registry import registry, split_names
from xattn.ops.table import DEFAULT
from xattn.plugin.request import Request

# The optional tensors of a call, by name.
Tensors = dict[str, Tensor]

DTYPES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SHAPE, FEATURES, WHERE = "Shape", "Features", "Where it runs"


def _known(device: str) -> str:
    """A device name as in `Request.device`: a typo would be a device that only `reference` serves."""
    kernels = [kernel for entry in registry().entries.values() for kernel in entry.backend.kernels]
    declared = {block.device for kernel in kernels for block in kernel.capabilities}
    try:
        plain = torch.device(device).type == device
    except RuntimeError:
        plain = False
    if not plain and device not in declared - {"any"} | {"neuron"}:
        raise typer.BadParameter(f"{device!r} is no device; name one as torch or a plugin does, without an index")
    return device


@dataclasses.dataclass(frozen=True)
class Call:
    """The options, as typed. `takes_call` gives them to a command."""

    shape: Annotated[
        str,
        typer.Option(metavar="B,SQ,H,D", help="Shape of q: batch, seqlen_q, nheads, headdim.", rich_help_panel=SHAPE),
    ]
    shape_k: Annotated[
        str | None,
        typer.Option(
            metavar="B,SK,HK", help="Batch, seqlen_k, nheads_k of k and v; by default q's.", rich_help_panel=SHAPE
        ),
    ] = None
    seqlen_k: Annotated[
        int | None, typer.Option(min=0, help="Keys; by default as many as queries.", rich_help_panel=SHAPE)
    ] = None
    nheads_k: Annotated[
        int | None, typer.Option(min=1, help="Heads of k and v; by default q's.", rich_help_panel=SHAPE)
    ] = None
    headdim_v: Annotated[
        int | None, typer.Option(min=1, help="Headdim of v; by default q's.", rich_help_panel=SHAPE)
    ] = None
    dtype: Annotated[str, typer.Option(help="A torch dtype, or fp64, fp32, fp16, bf16.", rich_help_panel=SHAPE)] = (
        "float32"
    )
    causal: Annotated[
        bool, typer.Option("--causal", help="Keys up to the diagonal alone.", rich_help_panel=FEATURES)
    ] = False
    window: Annotated[
        str | None,
        typer.Option(
            metavar="LEFT,RIGHT",
            help='Keys this far from the diagonal, "none" for open. Sliding window W: W-1,0.',
            rich_help_panel=FEATURES,
        ),
    ] = None
    align: Annotated[
        str,
        typer.Option(
            help="Where the diagonal is: bottom_right, top_left, or the key of query 0.", rich_help_panel=FEATURES
        ),
    ] = "bottom_right"
    scale: Annotated[
        float | None, typer.Option(help="Of q @ k.T; by default 1/sqrt(headdim).", rich_help_panel=FEATURES)
    ] = None
    softcap: Annotated[float | None, typer.Option(help="c * tanh(score / c).", rich_help_panel=FEATURES)] = None
    sinks: Annotated[bool, typer.Option("--sinks", help="One sink logit a head.", rich_help_panel=FEATURES)] = False
    alibi: Annotated[bool, typer.Option("--alibi", help="ALiBi, one slope a head.", rich_help_panel=FEATURES)] = False
    bias: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help="A float bias of this shape, as 1,8,128,128.", rich_help_panel=FEATURES),
    ] = None
    mask: Annotated[
        str | None, typer.Option(metavar="SHAPE", help="A bool mask of this shape.", rich_help_panel=FEATURES)
    ] = None
    seqlens_k: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Valid keys, one number a batch row.", rich_help_panel=FEATURES),
    ] = None
    dropout: Annotated[float, typer.Option(help="Probability of dropout.", rich_help_panel=FEATURES)] = 0.0
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Equal bits from run to run.", rich_help_panel=FEATURES)
    ] = False
    return_lse: Annotated[bool, typer.Option("--return-lse", help="The log-sum-exp too.", rich_help_panel=FEATURES)] = (
        False
    )
    grad: Annotated[bool, typer.Option("--grad", help="Gradients of q, k, v.", rich_help_panel=FEATURES)] = False
    grad_bias: Annotated[bool, typer.Option("--grad-bias", help="The gradient of bias.", rich_help_panel=FEATURES)] = (
        False
    )
    grad_sinks: Annotated[
        bool, typer.Option("--grad-sinks", help="The gradient of sinks.", rich_help_panel=FEATURES)
    ] = False
    device: Annotated[
        str,
        typer.Option(help="cpu, cuda (NVIDIA), rocm, neuron, ...: as plugins call it.", rich_help_panel=WHERE),
    ] = "cpu"
    backend: Annotated[
        str,
        typer.Option(help="A backend, a plugin, several in order (a,b), or auto.", rich_help_panel=WHERE),
    ] = "auto"

    @property
    def choice(self) -> Choice:
        names = split_names(self.backend)
        return chosen(names[0] if len(names) == 1 else names)

    def arguments(self, tensors: Tensors) -> dict[str, Any]:
        """The keyword arguments of `xattn.attention`, but `backend`."""
        return {
            "causal": self.causal,
            "window": _window(self.window),
            "align": _align(self.align),
            "scale": self.scale,
            "softcap": self.softcap,
            "dropout_p": self.dropout,
            "deterministic": self.deterministic,
            "return_lse": self.return_lse,
            **tensors,
        }

    def request(self, arch: str | None = None) -> Request:
        """The call on a device that this machine need not have: validated with tensors that hold no data."""
        q, k, v, tensors = self.tensors(torch.device("meta"))
        request = DEFAULT.prepare(q, k, v, **self.arguments(tensors)).request
        # What its values say, no meta tensor tells.
        if self.seqlens_k is not None and DEFAULT.check_values is not None:
            DEFAULT.check_values(q, k, v, seqlens_k=torch.tensor(_ints(self.seqlens_k, "--seqlens-k")))
        return dataclasses.replace(request, device=_known(self.device), arch=arch)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensors]:
        """q, k, v and the optional tensors, random, with requires_grad as asked."""
        batch, seqlen_q, nheads, headdim = _ints(self.shape, "--shape", 4)
        batch_k, seqlen_k, nheads_k = self._shape_k(batch, seqlen_q, nheads)
        headdim_v = headdim if self.headdim_v is None else self.headdim_v
        dtype = _dtype(self.dtype)

        def random(*shape: int, grad: bool = False) -> Tensor:
            wide = torch.randn(shape, device=device)
            return wide.to(dtype).requires_grad_(grad and dtype.is_floating_point)

        q = random(batch, seqlen_q, nheads, headdim, grad=self.grad)
        k = random(batch_k, seqlen_k, nheads_k, headdim, grad=self.grad)
        v = random(batch_k, seqlen_k, nheads_k, headdim_v, grad=self.grad)
        tensors: Tensors = {}
        if self.sinks:
            tensors["sinks"] = random(nheads, grad=self.grad_sinks)
        if self.alibi:
            # The slopes of the ALiBi paper: 2^(-8/n), 2^(-16/n), ...
            tensors["alibi_slopes"] = torch.exp2(-8.0 / nheads * torch.arange(1, nheads + 1, device=device)).float()
        if self.bias is not None:
            tensors["bias"] = random(*_ints(self.bias, "--bias"), grad=self.grad_bias)
        if self.mask is not None:
            tensors["mask"] = torch.rand(_ints(self.mask, "--mask"), device=device) < 0.9
        if self.seqlens_k is not None:
            lengths = torch.tensor(_ints(self.seqlens_k, "--seqlens-k"), dtype=torch.int32)
            tensors["seqlens_k"] = lengths.to(device)
        for name, asked in (("bias", self.grad_bias), ("sinks", self.grad_sinks)):
            if asked and name not in tensors:
                raise typer.BadParameter(f"there is no --{name}", param_hint=f"--grad-{name}")
        return q, k, v, tensors

    def _shape_k(self, batch: int, seqlen_q: int, nheads: int) -> tuple[int, int, int]:
        if self.shape_k is None:
            seqlen_k = seqlen_q if self.seqlen_k is None else self.seqlen_k
            return batch, seqlen_k, nheads if self.nheads_k is None else self.nheads_k
        if self.seqlen_k is not None or self.nheads_k is not None:
            raise typer.BadParameter("not beside --seqlen-k or --nheads-k", param_hint="--shape-k")
        batch_k, seqlen_k, nheads_k = _ints(self.shape_k, "--shape-k", 3)
        return batch_k, seqlen_k, nheads_k


def takes_call(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Call` in place of its first parameter.

    Typer reads options from a signature, so this writes one: two commands share 24 options without repeating them.
    """
    fields = dataclasses.fields(Call)
    hints = get_type_hints(Call, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields
    ]
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        call = Call(**{field.name: values.pop(field.name) for field in fields})
        command(call, **values)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options


def _ints(text: str, option: str, count: int | None = None) -> list[int]:
    want = "whole numbers >= 0" if count is None else f"{count} whole numbers >= 0"
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 0 or (count is not None and len(sizes) != count):
        raise typer.BadParameter(f"{text!r} is not {want} with commas between", param_hint=option)
    return sizes


def _window(text: str | None) -> tuple[int | None, int | None] | None:
    if text is None:
        return None
    try:
        left, right = (None if side.strip().lower() == "none" else int(side) for side in text.split(","))
    except ValueError:
        want = f'{text!r} is not LEFT,RIGHT, each a whole number or "none"'
        raise typer.BadParameter(want, param_hint="--window") from None
    return left, right


def _align(text: str) -> str | int:
    """A name, or the key that query 0 is aligned with."""
    return int(text) if text.lstrip("-").isdecimal() else text


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, DTYPES.get(name, name), None)
    if not isinstance(dtype, torch.dtype):
        raise typer.BadParameter(f"torch has no dtype {name!r}", param_hint="--dtype")
    return dtype
