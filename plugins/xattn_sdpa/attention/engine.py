"""Which engine computes a call, and what is the same for all of them: sinks, key lengths, gradients."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from xattn_sdpa.attention import blockwise, flash, fused
from xattn_sdpa.attention.problem import Problem, rows, zero_result


@dataclass(frozen=True)
class Settings:
    """The plain numbers of a call, as the torch operators take them.

    offset: of every batch row, 0 for "top_left"; None is "bottom_right", which counts from the end of each row.
    """

    left: int | None
    right: int | None
    offset: int | None
    scale: float
    softcap: float | None


def _problem(tensors: tuple[Tensor | None, ...], settings: Settings) -> Problem:
    q, k, v, sinks, alibi_slopes, bias, mask = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    offset = k.shape[1] - q.shape[1] if settings.offset is None else settings.offset
    scale = settings.scale
    if scale <= 0:
        # The fused kernel masks the future before it scales, and -inf * 0 is NaN, -inf * -1 is inf.
        q, scale = q * sign(scale), abs(scale) or 1.0
    left, right, softcap = settings.left, settings.right, settings.softcap
    return Problem(q, k, v, sinks, alibi_slopes, bias, mask, left, right, offset, scale, softcap)


def sign(scale: float) -> float:
    """The factor on q that `_problem` has put in place of the scale's sign."""
    return 1.0 if scale > 0 else -1.0 if scale < 0 else 0.0


def _kernels(problem: Problem) -> ModuleType:
    """The module whose kernels are the fastest that are exact for the problem."""
    if problem.softcap is not None:
        return blockwise
    if problem.q.device.type == "cpu":
        return fused
    if problem.masked or problem.alibi_slopes is not None:
        return blockwise
    headdim, headdim_v = problem.q.shape[3], problem.v.shape[3]
    served = flash.serves(dtype=problem.q.dtype, headdim=headdim, headdim_v=headdim_v, geometry=problem.geometry)
    return flash if served else blockwise


def forward(tensors: tuple[Tensor | None, ...], seqlens_k: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """tensors: q, k, v, sinks, alibi_slopes, bias, mask as in `Problem`.

    Returns out, and lse (batch, nheads, seqlen_q) in the dtype of the scores.
    """
    whole = _problem(tensors, settings)
    if _empty(whole):
        out, lse = zero_result(whole)
    elif seqlens_k is None:
        out, lse = _kernels(whole).forward(whole.without_unseen())
    elif whole.q.device.type == "cpu":
        out, lse = zero_result(whole)
        for part, problem in rows(whole, seqlens_k, settings.offset):
            out[part], lse[part] = _kernels(problem).forward(problem.without_unseen())
    else:
        out, lse = flash.forward_ragged(whole, seqlens_k)
    sinks = whole.sink_rows()
    if sinks is not None:
        lse = join_sinks(out, lse, sinks)
    return out, lse.contiguous()


def join_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """The lse with the sinks (batch or 1, nheads, 1) in it, and out scaled in place. Shapes as of `forward`."""
    # Not exp(lse - logaddexp(lse, sink)): beside a large lse both are rounded to more than the weight needs.
    weight = torch.sigmoid(lse - sinks).masked_fill_(lse == -torch.inf, 0.0)
    out.mul_(weight.transpose(1, 2).unsqueeze(-1))
    return torch.logaddexp(lse, sinks)


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: tuple[Tensor | None, ...],
    seqlens_k: Tensor | None,
    settings: Settings,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dq, dk, dv, dsinks, dbias, each in the dtype and shape of its tensor."""
    whole = _problem(tensors, settings)
    dq, dk, dv = (torch.zeros(x.shape, dtype=whole.wide, device=x.device) for x in (whole.q, whole.k, whole.v))
    bias = whole.bias
    dbias = torch.zeros(bias.shape, dtype=whole.wide, device=bias.device) if need_dbias and bias is not None else None
    for part, problem in () if _empty(whole) else rows(whole, seqlens_k, settings.offset):
        problem = problem.without_unseen()
        args = dout[part], None if dlse is None else dlse[part], out[part], lse[part], dq[part], dk[part], dv[part]
        kernels = _kernels(problem)
        if kernels is blockwise or dlse is not None or dbias is not None:
            blockwise.backward(problem, *args, _bias_part(dbias, part))
        else:
            kernels.backward(problem, args[0], *args[2:])
    dsinks = None
    sinks = whole.sink_rows()
    if sinks is not None and whole.sinks is not None:
        grad = sink_gradients(dout, dlse, out, lse, sinks)
        dsinks = grad.sum_to_size(whole.sinks.shape).to(whole.sinks.dtype)
    if settings.scale <= 0:
        dq.mul_(sign(settings.scale))
    dtype = whole.q.dtype
    return (
        dq.to(dtype),
        dk.to(dtype),
        dv.to(dtype),
        dsinks,
        None if dbias is None or bias is None else dbias.to(bias.dtype),
    )


def sink_gradients(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """(batch, nheads), summed over the queries. Shapes as of `backward`; sinks (batch or 1, nheads, 1)."""
    # The sink's weight is exp(sink - lse), and it has no value: d sink = weight * (dlse - dout . out).
    delta = (dout.to(lse.dtype) * out.to(lse.dtype)).sum(-1).transpose(1, 2)
    # A sink of -inf in a row without keys has no weight either.
    weight = torch.exp(sinks - lse.masked_fill(lse == -torch.inf, torch.inf))
    return (weight * (-delta if dlse is None else dlse - delta)).sum(-1)


def _empty(problem: Problem) -> bool:
    """Nothing to compute, and nothing that every kernel takes: torch's flash on CUDA refuses an empty batch."""
    return 0 in problem.q.shape or 0 in problem.k.shape


def _bias_part(dbias: Tensor | None, part: slice) -> Tensor | None:
    return dbias if dbias is None or dbias.shape[0] == 1 else dbias[part]
