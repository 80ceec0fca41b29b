"""pi0's way of attending: lerobot itself is not installed here, so a function that calls Gemma's as it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaModel
from transformers.models.gemma import modeling_gemma

import xattn
from xattn.integrations.lerobot import use


def towers(seed: int = 0) -> nn.ModuleList:
    """A large and a small tower with the same heads."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 8,
    }
    return nn.ModuleList(
        GemmaModel(GemmaConfig(hidden_size=hidden, intermediate_size=32, **sizes)).eval() for hidden in (64, 32)
    )


def attend(pair: nn.ModuleList) -> Tensor:
    """One layer of pi0: the tokens of both towers in one sequence, and an additive mask with finite minima."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, heads, 10, 16) for heads in (4, 1, 1))
    mask = torch.where(torch.rand(2, 1, 10, 10) > 0.5, 0.0, -2.3819763e38)
    module: Any = pair[0]
    layer = module.layers[0].self_attn
    out: Tensor = modeling_gemma.eager_attention_forward(layer, q, k, v, mask, layer.scaling)[0]
    return out


def served(call: Callable[[], object]) -> int:
    """How often a call reaches xattn: with a backend that nobody has, each is an error."""
    with xattn.use_backend("nki"):
        try:
            call()
        except xattn.UnsupportedError:
            return 1
    return 0


def test_a_policy_is_served_and_no_other_model() -> None:
    pair, other = towers(), towers(1)
    want = attend(pair)
    undo = use(pair)
    torch.testing.assert_close(attend(pair), want, rtol=1e-4, atol=1e-5)
    assert served(lambda: attend(pair)) == 1
    assert served(lambda: attend(other)) == 0
    undo()
    assert served(lambda: attend(pair)) == 0
    assert torch.equal(attend(pair), want)


def test_undone_in_the_other_order_it_says_so() -> None:
    first, second = use(towers()), use(towers(1))
    with pytest.raises(xattn.InvalidArgumentError, match="Undo the later ones first"):
        first()
    second()
    first()


def test_a_model_without_gemmas_layers_is_refused() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="Linear"):
        use(nn.Linear(2, 2))
