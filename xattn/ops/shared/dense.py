"""What ops have whose tensors are (batch, seqlen, nheads, headdim): a part of their requests, and checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks
from xattn.ops.shared.softmax import SoftmaxRequest
from xattn.plugin.devices import device_and_arch
from xattn.plugin.request import TensorSpec, dtype_name
from xattn.plugin.symbolic import differ, holds, is_int32, known


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class DenseRequest(SoftmaxRequest):
    """offset_inside: with align "offset": 0 <= off <= seqlen_k - seqlen_q, and no seqlens_k.
    bias carries a flag of its own for its gradient, as sinks do.
    """

    batch: int
    seqlen_q: int
    seqlen_k: int
    offset_inside: bool = False
    bias: TensorSpec | None = None
    mask: TensorSpec | None = None
    seqlens_k: TensorSpec | None = None

    @property
    def offset(self) -> int | None:
        """`off` of the contract, the key that query 0 is aligned with, where seqlens_k is None; None where the call
        brings it."""
        if self.align == "offset":
            return None
        return 0 if self.align == "top_left" else self.seqlen_k - self.seqlen_q

    @property
    def alignment_matters(self) -> bool:
        """Whether another `align` is another answer."""
        if not self.positional:
            return False
        return self.align == "offset" or self.seqlens_k is not None or not known(self.seqlen_q == self.seqlen_k)

    @property
    def empty(self) -> bool:
        return any(holds(size == 0) for size in (self.batch, self.seqlen_q, self.seqlen_k))

    @property
    def scores(self) -> int:
        return self.batch * self.nheads * self.seqlen_q * self.seqlen_k

    def extents(self) -> dict[str, int]:
        return self._extents(self.batch, self.seqlen_q, self.seqlen_k)

    def _shapes(self) -> list[str]:
        """q, k, v and what they are on, for `str`."""
        return [
            f"q=({self.batch}, {self.seqlen_q}, {self.nheads}, {self.headdim})",
            f"k=({self.batch}, {self.seqlen_k}, {self.nheads_k}, {self.headdim})",
            f"v=({self.batch}, {self.seqlen_k}, {self.nheads_k}, {self.headdim_v})",
            dtype_name(self.dtype),
            self.place,
        ]


def described(
    q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The fields of a checked call's request that ops share. options: by name, causal, window, align, scale, softcap,
    deterministic. tensors: the optional ones."""
    batch, seqlen_q, nheads, headdim = q.shape
    _, seqlen_k, nheads_k, headdim_v = v.shape
    device, arch = device_and_arch(q.device)
    window, align = checks.as_window(options["window"]), options["align"]
    # Where nothing depends on the diagonal, it may as well lie where every kernel has it.
    positional = options["causal"] or window is not None or "alibi_slopes" in tensors
    if not positional:
        align = "bottom_right"
    given_offset = not isinstance(align, str)
    return {
        "device": device,
        "arch": arch,
        "dtype": q.dtype,
        "batch": batch,
        "seqlen_q": seqlen_q,
        "seqlen_k": seqlen_k,
        "nheads": nheads,
        "nheads_k": nheads_k,
        "headdim": headdim,
        "headdim_v": headdim_v,
        "causal": bool(options["causal"]),
        "window": window,
        "align": "offset" if given_offset else align,
        "offset_inside": given_offset and _is_inside(align, q, k) and "seqlens_k" not in tensors,
        "scale": checks.as_float(options["scale"]),
        "softcap": checks.as_float(options["softcap"]),
        "deterministic": bool(options["deterministic"]),
        "batch_invariant": options["deterministic"] == "batch",
        **{name: checks.spec(tensor) for name, tensor in tensors.items()},
    }


def kind_of_align(align: Any, q: Tensor, k: Tensor) -> object:
    """What of an alignment decides a plan: of an offset, that it is one, and whether it lies inside."""
    if not is_int32(align):
        return align
    return "offset", all(checks.has_rank(x, 4) for x in (q, k)) and _is_inside(align, q, k)


def _is_inside(off: int, q: Tensor, k: Tensor) -> bool:
    """Whether every query is aligned with a key."""
    return holds(off >= 0) and holds(off <= k.shape[1] - q.shape[1])


def check_main(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.check_tensor(name, tensor)
        if tensor.dim() != 4:
            hint = ""
            if tensor.dim() == 3:
                hint = f"Packed sequences are for varlen_attention; of one sequence pass {name}[None], of heads that "
                hint += f"lie side by side {name}.unflatten(-1, (nheads, headdim))."
            want = "4 dimensions (batch, seqlen, nheads, headdim)"
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", want, hint)
        checks.check_floating(name, tensor)
        checks.check_heads(name, tensor)
        checks.check_dense(name, tensor)
    for name, tensor in (("k", k), ("v", v)):
        checks.check_like(name, tensor, "q", q)
    _check_shapes(tuple(q.shape), tuple(k.shape), tuple(v.shape))


def _check_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    checks.check_size("k", "batch", k[0], q[0], "q")
    checks.check_size("v", "batch", v[0], q[0], "q")
    checks.check_size("k", "headdim", k[3], q[3], "q")
    if differ(v[1], k[1]):
        raise InvalidArgumentError("v", f"seqlen_k {v[1]}", f"{k[1]}, the seqlen_k of k", _transposed(q, k, v))
    if differ(v[2], k[2]):
        raise InvalidArgumentError("v", f"nheads_k {v[2]}", f"{k[2]}, the nheads_k of k", _transposed(q, k, v))
    if holds(q[2] % k[2] != 0):
        want = f"a divisor of nheads, which is {q[2]}"
        raise InvalidArgumentError("k", f"nheads_k {k[2]}", want, _transposed(q, k, v))


def _transposed(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> str:
    """The hint for a (batch, nheads, seqlen, headdim) call: taken as BNSH everything fits. Asked only of a call that is
    wrong: under torch.compile each comparison of sizes is a guard."""
    if k[1] == v[1] and k[2] == v[2] and 0 < k[1] < k[2] and q[1] % k[1] == 0:
        text = "q, k, v look like (batch, nheads, seqlen, headdim); xattn takes (batch, seqlen, nheads, headdim): "
        return text + "pass x.transpose(1, 2), which copies nothing."
    return ""


def check_options(options: Mapping[str, Any]) -> None:
    """Those that ops share."""
    checks.check_flag("causal", options["causal"])
    checks.check_deterministic(options["deterministic"])
    checks.check_align(options["align"])
    checks.check_window(options["window"])
    checks.check_scale(options["scale"])
    checks.check_softcap(options["softcap"])


def check_tensor(name: str, tensor: Tensor, q: Tensor, k: Tensor) -> None:
    batch, seqlen_q, nheads, seqlen_k = q.shape[0], q.shape[1], q.shape[2], k.shape[1]
    if name == "sinks":
        checks.check_option(name, tensor, q, "floating-point", {"(nheads,)": (nheads,)})
    elif name == "alibi_slopes":
        shapes = {"(nheads,)": (nheads,), "(batch, nheads)": (batch, nheads)}
        checks.check_option(name, tensor, q, "float32", shapes)
        checks.check_without_grad(name, tensor, "Detach it; slopes have no gradient in xattn.")
    elif name == "seqlens_k":
        checks.check_option(name, tensor, q, "int32 or int64", {"(batch,)": (batch,)})
    else:
        wrong_dtype = _of_another_dtype(name, tensor)
        checks.check_option(name, tensor, q, "bool" if name == "mask" else "floating-point", {}, wrong_dtype)
        _check_broadcast(name, tuple(tensor.shape), (batch, nheads, seqlen_q, seqlen_k))


def _of_another_dtype(name: str, tensor: Any) -> str:
    """What to say of a mask or bias whose dtype is not its own."""
    dtype = tensor.dtype if isinstance(tensor, Tensor) else None
    if name == "bias":
        return "A bool mask is mask=." if dtype == torch.bool else ""
    if dtype is not None and dtype.is_floating_point:
        return "A float mask that is added to the scores is bias=."
    return "True = may attend: a mask of ones and zeros that means the same is mask.bool()."


def _broadcasts(size: int, whole: int) -> bool:
    return holds(size == 1) or not differ(size, whole)


def _check_broadcast(name: str, shape: tuple[int, ...], full: tuple[int, ...]) -> None:
    """full: (batch, nheads, seqlen_q, seqlen_k)."""
    if len(shape) <= 4 and all(map(_broadcasts, shape[::-1], full[::-1])):
        return
    batch, _, seqlen_q, seqlen_k = full
    hint = ""
    if shape == (batch, seqlen_k):
        hint = f"A (batch, seqlen_k) padding mask is {name}[:, None, None, :]."
    elif shape == (batch, seqlen_q, seqlen_k):
        hint = f"A mask for each batch row is {name}[:, None]."
    want = f"broadcastable to (batch, nheads, seqlen_q, seqlen_k) = {full}"
    raise InvalidArgumentError(name, f"shape {shape}", want, hint)


def check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    seqlens_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    **others: object,
) -> None:
    """Check the values that no shape tells: seqlens_k and alibi_slopes.

    On the CPU alone: on an accelerator it would stop the stream, and under torch.compile break the graph. May run
    before a call is described, so it passes over what that rejects.
    """
    if not checks.has_rank(k, 4):
        return
    if seqlens_k is not None and checks.readable(seqlens_k, torch.int32, torch.int64):
        low, high = (int(x) for x in torch.aminmax(seqlens_k))
        if low < 0 or high > k.shape[1]:
            want = f"0 to seqlen_k, which is {k.shape[1]}"
            raise InvalidArgumentError("seqlens_k", f"values from {low} to {high}", want)
    checks.check_slopes(alibi_slopes)
