"""A model of pi0's shape, 18 layers and 10 steps, on the stand-in for aiter: what is copied, transposed or joined."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from integrations.optimized_models import make, operations_in_attention
from rocm.rotary_recorder import Calls, a_gfx942, recorded_calls  # noqa: F401
from torch.utils._python_dispatch import _disable_current_modes

from xattn.integrations.transformers import optimize, register
from xattn.measure.operations import MATERIALISING

LAYERS, STEPS, TOKENS = 18, 10, 7


@pytest.fixture(autouse=True)
def _kernels(gfx942: None, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """What aiter's own kernels do inside is no operation of torch."""
    register()
    module = sys.modules["aiter"]
    for name, function in list(vars(module).items()):
        if callable(function) and not isinstance(function, type):
            monkeypatch.setattr(module, name, _uncounted(function))


def _uncounted(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return run


@torch.no_grad()
def test_no_transpose_no_copy_and_no_concatenation_in_180_layers(calls: Calls) -> None:
    """transformers transposes q, k and v 540 times, as often back for aiter, and joins the halves of rotate_half."""
    model = make("gemma", num_hidden_layers=LAYERS, num_key_value_heads=1).bfloat16().model
    hidden = torch.randn(1, TOKENS, 32, generator=torch.Generator().manual_seed(0)).bfloat16()

    def steps() -> None:
        for _ in range(STEPS):
            model(inputs_embeds=hidden, use_cache=False)

    before = operations_in_attention(model, steps)
    assert (before["transpose(1, 2)"], before["cat"]) == (2 * 540, 360)
    assert not calls  # transformers rotates by itself
    optimize(model)
    after = operations_in_attention(model, steps)
    assert [name for name, _ in calls] == ["rope_cached_2c_fwd"] * LAYERS * STEPS
    # The halves of cos and sin, once a step.
    assert {name: after[name] for name in MATERIALISING if after[name]} == {"clone": 2 * STEPS}
    # Projections and views: aiter's rope takes (seqlen, batch, nheads, headdim).
    views = {"view", "_unsafe_view", "t", "transpose(0, 1)", "slice", "select"}
    assert {*after} <= {"mm", "clone", *views}
