"""The dense op: `attention`, and `plan` for repeated calls of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, overload

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn import override, plans
from xattn.arguments import Options, Tensors, present
from xattn.backend import Plan
from xattn.output import AttentionOutput, Output

if TYPE_CHECKING:
    from typing_extensions import Unpack

Window = tuple[int | None, int | None]


class Arguments(TypedDict, total=False):
    """The keyword arguments of `attention`, `plan` and `explain`."""

    causal: bool
    window: Window | None
    align: str
    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    seqlens_k: Tensor | None
    dropout_p: float
    deterministic: bool
    backend: str | Sequence[str]


_scoped = override.scoped
_recent = plans.recent


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[False] = False, **rest: Unpack[Arguments]
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **rest: Unpack[Arguments]
) -> AttentionOutput: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    align: str = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    dropout_p: float = 0.0,
    deterministic: bool = False,
    return_lse: bool = False,
    backend: str | Sequence[str] = "auto",
) -> Output:
    """Attention on BSNH tensors by the best backend that can serve the call exactly as asked.

    q: (batch, seqlen_q, nheads, headdim). Any strides with a dense last dimension, as k and v.
    k, v: (batch, seqlen_k, nheads_k, headdim) and (batch, seqlen_k, nheads_k, headdim_v), dtype and device of q.
        nheads % nheads_k == 0; query head h reads key-value head h // (nheads // nheads_k).
    causal: key j is visible to query i when j <= i + off.
    window: (left, right), each an int >= 0 or None for open: i + off - left <= j <= i + off + right. Independent of
        causal. Hugging Face's and Neuron's `sliding_window=W` is (W - 1, 0).
    align: where the diagonal lies when seqlen_q != seqlen_k: off = seqlen_k - seqlen_q for "bottom_right", 0 for
        "top_left". With seqlens_k, seqlen_k is the row's valid length. For causal, window and alibi_slopes alike.
    scale: factor on q @ k.T; None is 1/sqrt(headdim). 0.0 is legal.
    softcap: c > 0 maps a score s to c * tanh(s / c).
    sinks: (nheads,) logits, one extra term exp(sink) in the softmax's denominator; not scaled, capped or masked.
    alibi_slopes: (nheads,) or (batch, nheads) float32, > 0: adds -slope * abs(i + off - j).
    bias: float, broadcastable to (batch, nheads, seqlen_q, seqlen_k), added after softcap. -inf masks.
    mask: bool, broadcastable as bias, True where a query may attend. Combines with causal and window.
    seqlens_k: (batch,) int32 or int64, the number of valid keys of each batch row. Its values are checked on the CPU
        alone: on an accelerator a value above seqlen_k is the caller's error and stays unnoticed.
    dropout_p: probability with which a softmax weight is zeroed.
    deterministic: ask for bitwise equal results from run to run, gradients included.
    return_lse: return AttentionOutput(out, lse).
    backend: a backend's name, a plugin's name (any backend of it), an ordered sequence of names, or "auto": the scope
        of `use_backend`, else XATTN_BACKEND, else the capable backend of the highest priority.

    Returns out (batch, seqlen_q, nheads, headdim_v), BSNH-contiguous, in the dtype of q (under autocast, in its dtype).
    A query that sees no key gives out = 0 and lse = -inf (the sink, where there is one).

    Raises InvalidArgumentError for a call that contradicts the above, UnsupportedError if no allowed backend can
    serve it (with every reason), UnknownBackendError for an unknown name. An exception of a vendor's kernel comes
    through with the request and the backend added as a note.
    """
    if is_dynamo_compiling():
        options = Options(causal, window, align, scale, softcap, dropout_p, deterministic, return_lse)
        tensors = present(sinks, alibi_slopes, bias, mask, seqlens_k)
        return plans.uncached(q, k, v, options, tensors, override.traced(backend))
    if backend == "auto":
        backend = _scoped.get()
    # One look-up says which options are on, that no optional tensor is there (a tensor is never a key), and what ran
    # last; the guard says whether these tensors are of the same kind. A model's layers all end here.
    try:
        check, run, resolved = _recent[
            causal, window, align, scale, softcap, sinks, alibi_slopes, bias, mask, seqlens_k,
            dropout_p, deterministic, return_lse, backend
        ]  # fmt: skip
    except (KeyError, TypeError):  # TypeError: a window or backend given as a list
        pass
    else:
        if check(q, k, v):
            try:
                return run(q, k, v)
            except Exception as error:
                resolved.annotate(error)
                raise
    options = Options(causal, window, align, scale, softcap, dropout_p, deterministic, return_lse)
    return plans.call(q, k, v, options, present(sinks, alibi_slopes, bias, mask, seqlens_k), backend)


def plan(q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **arguments: Unpack[Arguments]) -> Plan:
    """A callable for repeated calls of one kind, without the cost of choosing.

    Takes the arguments of `attention`. The result is called as `run(q, k, v)`, with the optional tensors, where there
    are any, as keywords: `run(q, k, v, sinks=sinks)`. The options are bound, the tensors are not.

    A plan trusts its caller: it is for tensors of the shapes, dtypes, device and need of gradients that it was made
    with, in any layout, and does not look. Under another autocast state, or with other sizes, call `attention` or make
    another plan. Scopes of `use_backend` opened later do not change it. Raises what `attention` raises.
    """
    options, tensors, backend = split(return_lse=return_lse, **arguments)
    return plans.held(q, k, v, options, tensors, override.chosen(backend))


def split(
    *,
    causal: bool = False,
    window: Window | None = None,
    align: str = "bottom_right",
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    seqlens_k: Tensor | None = None,
    dropout_p: float = 0.0,
    deterministic: bool = False,
    return_lse: bool = False,
    backend: str | Sequence[str] = "auto",
) -> tuple[Options, Tensors, str | Sequence[str]]:
    """The keyword arguments of `attention`, sorted into options, tensors and the choice of backend."""
    options = Options(causal, window, align, scale, softcap, dropout_p, deterministic, return_lse)
    return options, present(sinks, alibi_slopes, bias, mask, seqlens_k), backend
