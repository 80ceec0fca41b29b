"""aiter's two public functions, on an arch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from xattn_elsewhere.aiter.standin import routes
from xattn_elsewhere.aiter.standin.kernels import Run
from xattn_elsewhere.aiter.standin.routes import Given

# (batch, seqlen, nheads, headdim) tensors to a run for each sequence.
Make = Callable[[Tensor, Tensor, Tensor], Sequence[Run]]


def _padded(x: Tensor) -> Tensor:
    width = x.shape[-1]
    return x if width % 8 == 0 else F.pad(x, [0, 8 - width % 8])


class _Attend(Function):
    """q, k and v as the caller has them, one sequence after the other; out likewise, lse of each."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, make: Make, grad: bool, return_lse: bool
    ) -> Any:
        runs = make(_padded(q), _padded(k), _padded(v))
        done = [run.forward() for run in runs]
        if grad:
            assert return_lse
            ctx.runs, ctx.done, ctx.widths = runs, done, (q.shape[-1], v.shape[-1])
        join = _join(q.dim())
        out = join([out for out, _, _ in done])[..., : v.shape[-1]]
        lse = done[0][1] if q.dim() == 4 else torch.cat([lse[0] for _, lse, _ in done], 1)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> Any:
        # What flows into lse is dropped without a word.
        start, found = 0, []
        for run, (out, lse, kept) in zip(ctx.runs, ctx.done, strict=True):
            part = dout if dout.dim() == 4 else dout[None, start : start + run.given.seqlen_q]
            start += run.given.seqlen_q
            found.append(run.backward(out, lse, kept, _padded(part)))
        join = _join(dout.dim())
        dq, dk, dv = (join([grads[i] for grads in found]) for i in range(3))
        width, width_v = ctx.widths
        return dq[..., :width], dk[..., :width], dv[..., :width_v], found[0][3], None, None, None


def _join(dim: int) -> Callable[[list[Tensor]], Tensor]:
    return (lambda parts: parts[0]) if dim == 4 else (lambda parts: torch.cat([part[0] for part in parts]))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Any, make: Make, return_lse: bool, return_probs: bool) -> Any:
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    out, lse = _Attend.apply(q, k, v, bias, make, grad, return_lse)  # type: ignore[no-untyped-call]
    result = [out]
    if return_lse:
        result.append(lse)
    if return_probs:
        result.append(torch.empty(0))
    return result[0] if len(result) == 1 else tuple(result)


class Functions:
    """The methods have aiter's signatures."""

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
        causal: bool = False, window_size: Sequence[int] = (-1, -1, 0), bias: Tensor | None = None,
        alibi_slopes: Tensor | None = None, deterministic: bool = True, return_lse: bool = False,
        return_attn_probs: bool = False, how_v3_bf16_cvt: int = 1, cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None, sink_ptr: Tensor | None = None, num_splits: int = 0,
    ) -> Any:  # fmt: skip
        if cu_seqlens_q is not None or cu_seqlens_kv is not None:
            raise NotImplementedError("the stand-in knows no padded batches")
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        unpadded = q.shape[-1], v.shape[-1]

        def make(q: Tensor, k: Tensor, v: Tensor) -> list[Run]:
            given = self._given(
                q, k, v, q.shape[1], k.shape[1], causal, window_size, alibi_slopes, bias, sink_ptr, dropout_p,
                return_lse, deterministic, unpadded,
            )  # fmt: skip
            return [Run(given, routes.dense(given), scale)]

        return _attend(q, k, v, bias, make, return_lse, return_attn_probs)

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, min_seqlen_q: int = 0, dropout_p: float = 0.0, softmax_scale: float | None = None,
        logits_soft_cap: float = 0.0, causal: bool = False, window_size: Sequence[int] = (-1, -1, 0),
        bias: Tensor | None = None, alibi_slopes: Tensor | None = None, deterministic: bool = False,
        return_lse: bool = False, return_attn_probs: bool = False, how_v3_bf16_cvt: int = 1,
        block_table: Tensor | None = None, out: Tensor | None = None, cu_seqlens_q_padded: Tensor | None = None,
        cu_seqlens_k_padded: Tensor | None = None, sink_ptr: Tensor | None = None,
    ) -> Any:  # fmt: skip
        if cu_seqlens_q_padded is not None or cu_seqlens_k_padded is not None or out is not None:
            raise NotImplementedError("the stand-in knows no padded sequences and no out")
        if cu_seqlens_q.dtype != torch.int32 or cu_seqlens_k.dtype != torch.int32:
            raise RuntimeError("cu_seqlens_q must have dtype int32")
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        unpadded = q.shape[-1], v.shape[-1]

        def make(q: Tensor, k: Tensor, v: Tensor) -> list[Run]:
            given = self._given(
                q, k, v, max_seqlen_q, max_seqlen_k, causal, window_size, alibi_slopes, bias, sink_ptr, dropout_p,
                return_lse, deterministic, unpadded,
            )  # fmt: skip
            given = replace(given, softcap=logits_soft_cap, paged=block_table is not None)
            kernel = routes.varlen(given)
            if given.paged:
                if kernel != "v3":
                    raise UnboundLocalError("cannot access local variable 'filter_fwd'")
                raise NotImplementedError("the stand-in knows no pages")
            if kernel == "ck" and self._arch == "gfx942" and max_seqlen_q == 1 and not _decodes(given):
                # https://github.com/ROCm/aiter/issues/2229: wrong numbers, of which nobody said what they are.
                v = v.roll(1, 0)
            sequences = _sequences(given, v, cu_seqlens_q.tolist(), cu_seqlens_k.tolist())
            return [Run(one, kernel, scale, group_mode=True) for one in sequences]

        return _attend(q, k, v, bias, make, return_lse, return_attn_probs)

    def _given(
        self, q: Tensor, k: Tensor, v: Tensor, seqlen_q: int, seqlen_k: int, causal: bool, window: Sequence[int],
        alibi: Tensor | None, bias: Tensor | None, sink: Tensor | None, dropout_p: float, return_lse: bool,
        deterministic: bool, unpadded: tuple[int, int],
    ) -> Given:  # fmt: skip
        assert sink is None or sink.shape[0] == q.shape[-2], "sink_ptr has incorrect shape"
        return Given(
            arch=self._arch,
            q=q,
            k=k,
            v=v,
            seqlen_q=seqlen_q,
            seqlen_k=seqlen_k,
            causal=causal,
            left=window[0],
            right=window[1],
            sink_tokens=window[2] if len(window) == 3 else 0,
            alibi=alibi,
            bias=bias,
            sink=None if sink is None else sink.float(),
            dropout_p=dropout_p,
            return_lse=return_lse,
            deterministic=deterministic,
            unpadded=unpadded,
        )


def _sequences(given: Given, v: Tensor, starts_q: list[int], starts_k: list[int]) -> Iterator[Given]:
    """Each sequence as a batch of one."""
    for b in range(len(starts_q) - 1):
        rows, keys = slice(*starts_q[b : b + 2]), slice(*starts_k[b : b + 2])
        alibi = given.alibi
        if alibi is not None and alibi.dim() == 2:
            alibi = alibi[b : b + 1]
        yield replace(
            given,
            q=given.q[None, rows],
            k=given.k[None, keys],
            v=v[None, keys],
            seqlen_q=rows.stop - rows.start,
            seqlen_k=keys.stop - keys.start,
            alibi=alibi,
        )


def _decodes(given: Given) -> bool:
    """The one case that the issue found right."""
    return given.q.dtype == torch.bfloat16 and given.width == (128, 128)
