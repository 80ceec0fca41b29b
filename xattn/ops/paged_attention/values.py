"""Checks of what no shape tells in a call of `paged_attention`: lengths, bounds, and the pages that are looked at."""

from __future__ import annotations

from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks
from xattn.ops.shared.batches import Band, check_step
from xattn.plugin.storage import PagedBatch


def check_values(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    band: Band | None = None,
    align: object = "bottom_right",
    alibi_slopes: Tensor | None = None,
    tree_mask: Tensor | None = None,
    check: bool = False,
    **others: object,
) -> None:
    """Check the sizes that a plan does not depend on, and the values, as `check_step` does. band: of the call; None
    where it is not known."""
    if not (checks.has_rank(q, 3) and all(checks.has_rank(each, 4) for each in (k_cache, v_cache))):
        return
    _check_free_sizes(q, batch, align, alibi_slopes, tree_mask)
    checks.check_slopes(alibi_slopes)
    check_step(q, k_cache, batch, band=band, align=align, check=check)


def _check_free_sizes(
    q: Tensor, batch: PagedBatch, align: object, slopes: Tensor | None, tree_mask: Tensor | None
) -> None:
    """Those that must agree from call to call."""
    count = batch.batch
    if isinstance(align, Tensor) and checks.has_rank(align, 1) and align.shape[0] != count:
        raise InvalidArgumentError("align", f"shape {tuple(align.shape)}", f"({count},)")
    if checks.has_rank(slopes, 2) and slopes is not None and slopes.shape[0] != count:
        raise InvalidArgumentError("alibi_slopes", f"shape {tuple(slopes.shape)}", f"({count}, nheads)")
    if checks.has_rank(tree_mask, 2) and tree_mask is not None:
        want = (q.shape[0], batch.max_seqlen_q)
        if tuple(tree_mask.shape) != want:
            raise InvalidArgumentError(
                "tree_mask", f"shape {tuple(tree_mask.shape)}", f"{want}, (total_q, max_seqlen_q)"
            )
