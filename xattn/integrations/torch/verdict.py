"""What becomes of a call: asked of xattn once for each kind of call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xattn.dispatch.choice import chosen
from xattn.dispatch.guard import Check, guard, kind
from xattn.errors import InvalidArgumentError
from xattn.explain import explain
from xattn.integrations.torch.call import arguments, contradiction
from xattn.integrations.torch.report import Outcome
from xattn.plugin.tensors import is_plain

# Where xattn itself would call torch's attention, or its own plain code, torch's function may as well run untouched.
NO_BETTER = ("sdpa", "reference")

Verdict = tuple[Outcome, str]


class Verdicts:
    """Remembers, as a table of plans does: the last of each slot behind a guard, and behind it all of them."""

    def __init__(self, backend: str | Sequence[str]) -> None:
        self._backend = backend
        self._recent: dict[object, tuple[Check, Verdict]] = {}
        self._all: dict[object, Verdict] = {}

    def of(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Verdict:
        tensors = (q, k, v) if attn_mask is None else (q, k, v, attn_mask)
        slot = (len(tensors), dropout_p, is_causal, scale, enable_gqa, chosen(self._backend))
        recent = self._recent.get(slot)
        if recent is not None and recent[0](*tensors):
            return recent[1]
        if not all(map(is_plain, tensors)):  # while a graph is traced
            return self._asked(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        key = slot, kind(*tensors)
        verdict = self._all.get(key)
        if verdict is None:
            verdict = self._all[key] = self._asked(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        self._recent[slot] = guard(*tensors), verdict
        return verdict

    def _asked(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Verdict:
        why = contradiction(q, k, v, attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
        if why is not None:
            return "declined", why
        tensors, named = arguments(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
        try:
            explanation = explain(*tensors, backend=self._backend, **named)
        except InvalidArgumentError as error:
            return "declined", str(error)
        if explanation.backend is None:
            reasons = [
                f"{candidate.name}: {reason}"
                for candidate in explanation.candidates
                if candidate.asked
                for reason in candidate.reasons
            ]
            return "declined", "; ".join(reasons)
        if self._backend == "auto" and explanation.backend in NO_BETTER:
            return "torch's", f"xattn would take {explanation.backend}"
        return "served", explanation.backend
