"""How flash-attn, and aiter after it, write a window and a softcap, and what their functions return."""

from __future__ import annotations

import math

from torch import Tensor

from xattn import AttentionOutput, InvalidArgumentError

Window = tuple[int | None, int | None]

# Of `return_attn_probs`: out, lse, and the probabilities that exist in no kernel.
Returned = Tensor | tuple[Tensor, Tensor, Tensor]


def window_of(window_size: tuple[int, int]) -> Window | None:
    """A side below 0 is open there; None is here."""
    left, right = map(int, window_size)
    if left < 0 and right < 0:
        return None
    return (None if left < 0 else left, None if right < 0 else right)


def softcap_of(softcap: float) -> float | None:
    """0 is off there; None is here."""
    return softcap if softcap else None


def returned(found: Tensor | AttentionOutput) -> Returned:
    """out, or out, lse and no probabilities: flash-attn has an empty tensor of them where there is no dropout."""
    if isinstance(found, Tensor):
        return found
    return found.out, lse_of(found.lse), found.out.new_empty(0)


def lse_of(lse: Tensor) -> Tensor:
    """A query that sees no key has +inf there, -inf here."""
    return lse.masked_fill(lse == -math.inf, math.inf)


def check_probabilities(wanted: bool, dropout_p: float) -> None:
    if wanted and dropout_p:
        hint = "No kernel keeps the dropout's pattern."
        raise InvalidArgumentError("return_attn_probs", f"True with dropout_p={dropout_p}", "dropout_p=0", hint)
