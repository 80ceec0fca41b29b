"""aiter's two public functions, on an arch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
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
            ctx.runs, ctx.done, ctx.sizes = runs, done, (q.shape, k.shape, v.shape)
        if q.dim() == 4:
            (out, lse, _), *_ = done
        else:
            out = _of_packed((*q.shape[:2], v.shape[-1]), q, runs, [part for part, _, _ in done], keys=False)
            lse = torch.full((q.shape[1], len(q)), torch.nan)
            for run, (_, part, _) in zip(runs, done, strict=True):
                lse[:, run.rows] = part[0]
        return out[..., : v.shape[-1]], lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> Any:
        # What flows into lse is dropped without a word.
        found = [
            run.backward(out, lse, kept, _padded(dout if dout.dim() == 4 else dout[None, run.rows]))
            for run, (out, lse, kept) in zip(ctx.runs, ctx.done, strict=True)
        ]
        dbias = found[0][3] if found else None
        grads = [
            _of_packed(shape, dout, ctx.runs, [each[i] for each in found], keys=i > 0)
            if dout.dim() == 3
            else found[0][i][..., : shape[-1]]
            for i, shape in enumerate(ctx.sizes)
        ]
        return *grads, dbias, None, None, None


def _of_packed(shape: Sequence[int], like: Tensor, runs: Sequence[Run], parts: Sequence[Tensor], keys: bool) -> Tensor:
    """What the runs wrote, in new memory: nothing in rows of no sequence, nor, of keys, in a sequence without
    queries."""
    whole = like.new_full(tuple(shape), torch.nan)
    for run, part in zip(runs, parts, strict=True):
        if not keys or run.given.seqlen_q > 0:
            whole[run.keys if keys else run.rows] = part[0, ..., : shape[-1]]
    return whole


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
        if cu_seqlens_q_padded is not None or out is not None:
            raise NotImplementedError("the stand-in knows no padded queries and no out")
        if cu_seqlens_q.dtype != torch.int32 or cu_seqlens_k.dtype != torch.int32:
            raise RuntimeError("cu_seqlens_q must have dtype int32")
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        unpadded = q.shape[-1], v.shape[-1]

        def make(q: Tensor, k: Tensor, v: Tensor) -> list[Run]:
            given = self._given(
                q, k, v, max_seqlen_q, max_seqlen_k, causal, window_size, alibi_slopes, bias, sink_ptr, dropout_p,
                return_lse, deterministic, unpadded,
            )  # fmt: skip
            lengths = cu_seqlens_k_padded is not None
            given = replace(
                given, softcap=logits_soft_cap, paged=block_table is not None, lengths=lengths, bound_k=max_seqlen_k
            )
            kernel = routes.varlen(given)
            if given.paged:
                if kernel != "v3":
                    raise UnboundLocalError("cannot access local variable 'filter_fwd'")
                raise NotImplementedError("the stand-in knows no pages")
            if kernel == "ck" and self._arch == "gfx942" and max_seqlen_q == 1 and not _decodes(given):
                # https://github.com/ROCm/aiter/issues/2229: wrong numbers, of which nobody said what they are.
                v = v.roll(1, 0)
            starts_k = cu_seqlens_k if cu_seqlens_k_padded is None else cu_seqlens_k_padded
            places = _places(cu_seqlens_q.tolist(), starts_k.tolist(), cu_seqlens_k.diff().tolist())
            return [
                Run(one, kernel, scale, group_mode=True, rows=rows, keys=keys)
                for one, (rows, keys) in zip(_sequences(given, v, places), places, strict=True)
            ]

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


def _places(starts_q: list[int], starts_k: list[int], lengths_k: list[int]) -> list[tuple[slice, slice]]:
    """Where each sequence has its queries and its keys, which begin at starts_k."""
    keys = [slice(start, start + length) for start, length in zip(starts_k, lengths_k, strict=False)]
    return [(slice(*each), keys[b]) for b, each in enumerate(pairwise(starts_q))]


def _sequences(given: Given, v: Tensor, places: list[tuple[slice, slice]]) -> Iterator[Given]:
    """Each sequence as a batch of one."""
    for b, (rows, keys) in enumerate(places):
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
