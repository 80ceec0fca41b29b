"""The dense op: `attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import Choice, chosen, scoped
from xattn.ops.attention.arguments import prepare
from xattn.ops.shared.checks import given_tensors
from xattn.ops.shared.dense import check_values, kind_of_align
from xattn.ops.shared.output import AttentionOutput, Output
from xattn.ops.shared.softmax import Align, Deterministic, Window
from xattn.ops.shared.spelling import unexpected, without_unexpected

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Arguments(TypedDict, total=False):
    """The keyword arguments of `attention`, and of `plan` and `explain` for it."""

    causal: bool
    window: Window | None
    align: Align | int
    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    seqlens_k: Tensor | None
    dropout_p: float
    deterministic: Deterministic
    backend: str | Sequence[str]


_table = plans.PlanTable()
_scope = scoped
_recent = _table.recent
# Stands in a slot for an optional tensor that the call has.
_GIVEN = object()


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[False] = False, **rest: Unpack[Arguments]
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **rest: Unpack[Arguments]
) -> AttentionOutput: ...
@overload
def attention(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **rest: Unpack[Arguments]) -> Output: ...
@without_unexpected
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *unnamed: object,
    causal: bool = False,
    window: Window | None = None,
    align: Align | int = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    dropout_p: float = 0,  # of 0.0, torch.compile(dynamic=True) makes a symbol, guards it and starts anew
    deterministic: Deterministic = False,
    return_lse: bool = False,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> Output:
    """Attention on BSNH tensors by the best backend that can serve the call exactly as asked.

    q: (batch, seqlen_q, nheads, headdim). Any strides with a dense last dimension, as k and v.
    k, v: (batch, seqlen_k, nheads_k, headdim) and (batch, seqlen_k, nheads_k, headdim_v), dtype and device of q.
        nheads % nheads_k == 0; query head h reads key-value head h // (nheads // nheads_k).
    causal: key j is visible to query i when j <= i + off.
    window: (left, right), each an int >= 0 or None for open: i + off - left <= j <= i + off + right. Independent of
        causal. Hugging Face's and Neuron's `sliding_window=W` is (W - 1, 0).
    align: where the diagonal lies: off = seqlen_k - seqlen_q for "bottom_right", 0 for "top_left", or `off` itself, an
        int of 32 bits: the key that query 0 is aligned with, which may be negative or past the end. With seqlens_k,
        seqlen_k is the row's valid length, and an int holds for every row. For causal, window and alibi_slopes alike.
    scale: factor on q @ k.T; None is 1/sqrt(headdim). 0.0 is legal.
    softcap: c > 0 maps a score s to c * tanh(s / c).
    sinks: (nheads,) logits, one extra term exp(sink) in the softmax's denominator; not scaled, capped or masked.
    alibi_slopes: (nheads,) or (batch, nheads) float32, > 0: adds -slope * abs(i + off - j).
    bias: float, broadcastable to (batch, nheads, seqlen_q, seqlen_k), added after softcap. -inf masks.
    mask: bool, broadcastable as bias, True where a query may attend. Combines with causal and window.
    seqlens_k: (batch,) int32 or int64, the number of valid keys of each batch row. Its values are checked on the CPU
        alone: on an accelerator a value above seqlen_k is the caller's error and stays unnoticed.
    dropout_p: probability with which a softmax weight is zeroed.
    deterministic: True asks for the same bits from run to run, gradients included. "batch" asks besides that the bits
        of a sequence follow neither from the others in the call, nor from its place, nor from how its prompt was cut.
    return_lse: return AttentionOutput(out, lse).
    backend: a backend's name, a plugin's name (any backend of it), an ordered sequence of names, or "auto": the scope
        of `use_backend`, else XATTN_BACKEND, else the capable backend of the highest priority.

    Returns out (batch, seqlen_q, nheads, headdim_v), BSNH-contiguous, in the dtype of q (under autocast, in its dtype),
    and lse (batch, nheads, seqlen_q) float32, the natural log of the softmax's denominator, sink included.
    A query that sees no key gives out = 0 and lse = -inf (the sink, where there is one).

    Raises InvalidArgumentError for a call that contradicts the above, UnsupportedError if no allowed backend can
    serve it (with every reason), UnknownBackendError for an unknown name. An exception of a vendor's kernel comes
    through with the request and the backend added as a note.
    """
    if unnamed or unknown:
        raise unexpected(attention, unnamed, unknown)
    if not is_dynamo_compiling():
        choice = _scope.get() if backend == "auto" else backend
        # One look-up says which options are on, that no optional tensor is there (a tensor is never a key), and what
        # ran last; the guard says whether these tensors are of the same kind. A model's layers all end here. Of a
        # nested tensor the guard would end the process: its strides are a C++ exception that nobody catches.
        try:
            nested = q.is_nested or k.is_nested or v.is_nested
            check, run, planned = _recent[
                causal, window, align, scale, softcap, sinks, alibi_slopes, bias, mask, seqlens_k,
                dropout_p, deterministic, return_lse, choice
            ]  # fmt: skip
        except (KeyError, TypeError, AttributeError):  # a list for a window or backend; q, k or v that is no tensor
            pass
        else:
            if not nested and check(q, k, v):
                try:
                    return run(q, k, v)  # type: ignore[no-any-return]
                except Exception as error:
                    planned.annotate(error)
                    raise
    return _serve(
        q, k, v, backend,
        given_tensors(sinks=sinks, alibi_slopes=alibi_slopes, bias=bias, mask=mask, seqlens_k=seqlens_k),
        causal=causal, window=window, align=align, scale=scale, softcap=softcap, dropout_p=dropout_p,
        deterministic=deterministic, return_lse=return_lse,
    )  # fmt: skip


def _serve(
    q: Tensor, k: Tensor, v: Tensor, backend: str | Sequence[str], tensors: dict[str, Any], **options: Any
) -> Output:
    """A call that `_recent` did not serve at once."""
    choice = chosen(backend)
    if is_dynamo_compiling():
        return plans.traced(prepare(q, k, v, **tensors, **options), choice)  # type: ignore[no-any-return]
    check_values(q, k, v, **tensors)
    slot = _slot(q, k, tensors, choice, **options)
    every = (q, k, v, *tensors.values())
    planned = _table.find(slot, every)
    if planned is None:
        prepared = prepare(q, k, v, **tensors, **options)
        return _table.first(slot, every, prepared, choice)  # type: ignore[no-any-return]
    given = {**tensors, "align": options["align"]}
    return planned(q, k, v, **{name: given[name] for name in planned.given})  # type: ignore[no-any-return]


def _slot(
    q: Tensor,
    k: Tensor,
    tensors: dict[str, Any],
    choice: Choice,
    *,
    causal: bool,
    window: Window | None,
    align: Align | int,
    scale: float | None,
    softcap: float | None,
    dropout_p: float,
    deterministic: Deterministic,
    return_lse: bool,
) -> tuple[object, ...]:
    """The key of `_recent`: as `attention` spells it, with a mark that no caller has where there is a tensor."""
    return (
        causal, tuple(window) if isinstance(window, list) else window, kind_of_align(align, q, k), scale, softcap,
        *(_GIVEN if name in tensors else None for name in ("sinks", "alibi_slopes", "bias", "mask", "seqlens_k")),
        dropout_p, deterministic, return_lse, choice,
    )  # fmt: skip
