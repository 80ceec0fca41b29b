"""One call of the default op out of options: as a request for any device, or with tensors on this machine's."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import torch
import typer
from torch import Tensor

from xattn.cli import values
from xattn.cli.request import NOWHERE, prepared_of, usual_dtype
from xattn.dispatch.choice import Choice, chosen
from xattn.dispatch.op import Prepared
from xattn.dispatch.registry import split_names
from xattn.ops.table import DEFAULT

# The optional tensors of a call, by name.
Tensors = dict[str, Tensor]

SHAPE, FEATURES, WHERE = "Shape", "Features", "Where it runs"
# What a call of any op has.
COMMON = frozenset({"dtype", "device", "backend"})


@dataclasses.dataclass(frozen=True)
class Flags:
    """The options, as typed. `takes_flags` gives them to a command."""

    shape: Annotated[
        str | None,
        typer.Option(
            metavar="B,SQ,H,D",
            help="Shape of q: batch, seqlen_q, nheads, headdim. Has no default.",
            rich_help_panel=SHAPE,
        ),
    ] = None
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
    dtype: Annotated[
        str | None,
        typer.Option(
            help="A torch dtype, or fp64, fp32, fp16, bf16. By default float32 on the CPU; elsewhere bfloat16, where a "
            "backend declares it for the device.",
            rich_help_panel=SHAPE,
        ),
    ] = None
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
    alibi_slopes: Annotated[
        bool, typer.Option("--alibi-slopes", help="ALiBi, one slope a head.", rich_help_panel=FEATURES)
    ] = False
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
    dropout_p: Annotated[float, typer.Option(help="Probability of dropout.", rich_help_panel=FEATURES)] = 0.0
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
    def tensor_dtype(self) -> torch.dtype:
        return usual_dtype(self.device) if self.dtype is None else values.dtype(self.dtype, "--dtype")

    @property
    def choice(self) -> Choice:
        names = split_names(self.backend)
        return chosen(names[0] if len(names) == 1 else names)

    def arguments(self, tensors: Tensors) -> dict[str, Any]:
        """The keyword arguments of the op's function, but `backend`."""
        return {
            "causal": self.causal,
            "window": _window(self.window),
            "align": _align(self.align),
            "scale": self.scale,
            "softcap": self.softcap,
            "dropout_p": self.dropout_p,
            "deterministic": self.deterministic,
            "return_lse": self.return_lse,
            **tensors,
        }

    def prepared(self, arch: str | None = None) -> Prepared:
        """The call on a device that this machine need not have: validated with tensors that hold no data."""
        q, k, v, tensors = self.tensors(NOWHERE)
        arguments = {"q": q, "k": k, "v": v, **self.arguments(tensors)}
        prepared = prepared_of(DEFAULT, arguments, self.device, arch)
        # What its values say, no tensor without data tells.
        if self.seqlens_k is not None and DEFAULT.check_values is not None:
            DEFAULT.check_values(q, k, v, seqlens_k=torch.tensor(values.sizes(self.seqlens_k, "--seqlens-k")))
        return prepared

    def refuse_shape_and_features(self) -> None:
        """Raise where an option is given that has no place beside arguments by name."""
        for field in dataclasses.fields(self):
            if field.name not in COMMON and getattr(self, field.name) != field.default:
                option = "--" + field.name.replace("_", "-")
                raise typer.BadParameter("not beside an op's name or arguments as NAME=VALUE", param_hint=option)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensors]:
        """q, k, v and the optional tensors, random, with requires_grad as asked."""
        if self.shape is None:
            raise typer.BadParameter("missing; it is q's, as 1,1024,32,128", param_hint="--shape")
        batch, seqlen_q, nheads, headdim = values.sizes(self.shape, "--shape", 4)
        batch_k, seqlen_k, nheads_k = self._shape_k(batch, seqlen_q, nheads)
        headdim_v = headdim if self.headdim_v is None else self.headdim_v
        dtype = self.tensor_dtype

        def random(*shape: int, grad: bool = False) -> Tensor:
            wide = torch.randn(shape, device=device)
            return wide.to(dtype).requires_grad_(grad and dtype.is_floating_point)

        q = random(batch, seqlen_q, nheads, headdim, grad=self.grad)
        k = random(batch_k, seqlen_k, nheads_k, headdim, grad=self.grad)
        v = random(batch_k, seqlen_k, nheads_k, headdim_v, grad=self.grad)
        tensors: Tensors = {}
        if self.sinks:
            tensors["sinks"] = random(nheads, grad=self.grad_sinks)
        if self.alibi_slopes:
            # The slopes of the ALiBi paper: 2^(-8/n), 2^(-16/n), ...
            tensors["alibi_slopes"] = torch.exp2(-8.0 / nheads * torch.arange(1, nheads + 1, device=device)).float()
        if self.bias is not None:
            tensors["bias"] = random(*values.sizes(self.bias, "--bias"), grad=self.grad_bias)
        if self.mask is not None:
            tensors["mask"] = torch.rand(values.sizes(self.mask, "--mask"), device=device) < 0.9
        if self.seqlens_k is not None:
            lengths = torch.tensor(values.sizes(self.seqlens_k, "--seqlens-k"), dtype=torch.int32)
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
        batch_k, seqlen_k, nheads_k = values.sizes(self.shape_k, "--shape-k", 3)
        return batch_k, seqlen_k, nheads_k


def takes_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Flags` in place of its first parameter.

    Typer reads options from a signature, so this writes one: two commands share 24 options without repeating them.
    """
    fields = dataclasses.fields(Flags)
    hints = get_type_hints(Flags, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields
    ]
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        flags = Flags(**{field.name: given.pop(field.name) for field in fields})
        command(flags, **given)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options


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
    try:
        return int(text)
    except ValueError:
        return text
