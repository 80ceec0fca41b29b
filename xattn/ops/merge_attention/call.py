"""The op `merge_attention`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch import plans
from xattn.dispatch.choice import chosen
from xattn.ops.merge_attention.arguments import prepare
from xattn.ops.shared.checks import has_rank
from xattn.ops.shared.output import AttentionOutput
from xattn.ops.shared.spelling import unexpected, without_unexpected
from xattn.plugin.symbolic import bucket

_table = plans.PlanTable()


@without_unexpected
def merge_attention(
    outs: Sequence[Tensor],
    lses: Sequence[Tensor],
    *unnamed: object,
    backend: str | Sequence[str] = "auto",
    **unknown: object,
) -> AttentionOutput:
    """The attention over all keys, out of its parts over disjoint sets of them.

    outs: one tensor a part, of one shape, dtype and device: (batch, seqlen, nheads, headdim), or packed (tokens,
        nheads, headdim). As `attention` and `varlen_attention` return them, of any strides.
    lses: one tensor a part, float32: (batch, nheads, seqlen), packed (nheads, tokens). Natural logarithms; -inf where a
        query saw no key of that part, whose out is then not read, NaN included.
    backend: as in `attention`.

    Any number of parts, from one on. A sink belongs to no part: join it after the merge, as out * sigmoid(lse - sink)
    and logaddexp(lse, sink).

    Returns AttentionOutput(out, lse), new tensors: out contiguous, in the dtype of the outs, with sums in float32, in
    float64 for float64. A row whose lse is -inf in every part gives out 0, lse -inf and no gradient; an lse of +inf or
    NaN gives NaN in its row. Differentiable in outs and lses.

    Raises InvalidArgumentError for a call that contradicts the above, UnsupportedError if no allowed backend can serve
    it, UnknownBackendError for an unknown name.
    """
    if unnamed or unknown:
        raise unexpected(merge_attention, unnamed, unknown)
    choice = chosen(backend)
    if is_dynamo_compiling():
        return plans.traced(prepare(outs, lses), choice)  # type: ignore[no-any-return]
    every, slot, free = _kind(outs, lses)
    planned = _table.find((slot, choice), every, free)
    if planned is None:
        return _table.first((slot, choice), every, prepare(outs, lses), choice, free)  # type: ignore[no-any-return]
    return planned(outs, lses)  # type: ignore[no-any-return]


def _kind(
    outs: Sequence[Tensor], lses: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], object, tuple[tuple[int, ...], ...]]:
    """The tensors, what else decides a plan, and the dimensions that do not: of packed tensors the tokens, which count
    by their bucket."""
    parts = all(isinstance(given, (list, tuple)) for given in (outs, lses)) and len(outs) > 0
    every = (*outs, *lses) if parts else ()
    if not parts or not all(has_rank(out, 3) for out in outs) or not all(has_rank(lse, 2) for lse in lses):
        return every, (len(every), None), ()
    tokens = outs[0].shape[0]
    if any(out.shape[0] != tokens for out in outs) or any(lse.shape[1] != tokens for lse in lses):
        return every, (len(every), None), ()  # which describing the call names
    return every, (len(every), bucket(tokens)), (*[(0,)] * len(outs), *[(1,)] * len(lses))
