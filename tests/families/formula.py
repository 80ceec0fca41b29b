"""Falcon with ALiBi, whose slopes transformers' eager attention adds twice: here by the formula, once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

from families.scenarios import Call, Outputs
from torch import Tensor


def outputs(run: Callable[[Call], Outputs], call: Call) -> Outputs:
    """What is right: `run`, by eager attention or, where that is wrong, by the formula in float64."""
    if call.family.label != "Falcon, ALiBi":
        return run(call)
    from transformers.models.falcon.modeling_falcon import FalconAttention

    with mock.patch.object(FalconAttention, "forward", _forward):
        return run(call)


def _forward(
    self: Any, hidden_states: Tensor, alibi: Tensor, attention_mask: Tensor, layer_past: Any = None, **others: Any
) -> tuple[Tensor, None]:
    """The mask that the model hands over has the slopes, once."""
    heads = self._split_heads(self.query_key_value(hidden_states))
    query, key, value = (each.transpose(1, 2) for each in heads)
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    scores = query.double() @ key.double().mT / math.sqrt(self.head_dim) + attention_mask.double()
    out = scores.softmax(-1) @ value.double()
    return self.dense(out.transpose(1, 2).flatten(2).to(hidden_states.dtype)), None
