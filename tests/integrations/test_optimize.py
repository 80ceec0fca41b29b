"""Which models can be optimized, and how it is undone."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from integrations import tiny_models
from integrations.optimized_models import make
from integrations.tiny_models import VERSION, tokens
from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention

import xattn
from xattn.integrations.transformers import optimize, optimized, restore


def forwards(model: nn.Module) -> list[Any]:
    return [module.forward for name, module in model.named_modules() if name.endswith("self_attn")]


@torch.no_grad()
def test_it_is_undone() -> None:
    model = make("llama")
    before, want = forwards(model), model(tokens()).logits
    optimize(model)
    optimize(model)
    assert all(now != then for now, then in zip(forwards(model), before, strict=True))
    restore(model)
    assert forwards(model) == before
    assert torch.equal(model(tokens()).logits, want)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bert", "BertSelfAttention"),
        ("opt", "OPTAttention"),
        ("gpt2", "GPT2Attention"),
        ("llama4", "Llama4TextAttention"),
    ],
)
def test_an_unknown_module_is_refused_by_name(name: str, said: str) -> None:
    model = tiny_models.make(name, "xattn")
    with pytest.raises(xattn.InvalidArgumentError, match=f"{said}, want attention modules out of LlamaAttention"):
        optimize(model)


def test_a_namesake_of_another_package_is_refused() -> None:
    class Namesake(LlamaAttention):
        pass

    Namesake.__name__ = "LlamaAttention"
    model = make("llama")
    model.model.layers[1].self_attn.__class__ = Namesake
    before = forwards(model)
    with pytest.raises(xattn.InvalidArgumentError, match=r"test_optimize\.LlamaAttention"):
        optimize(model)
    assert forwards(model) == before  # of the other layer too


def test_a_forward_that_was_not_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a transformers that is yet to come."""

    def forward(self: Any, hidden_states: Any, position_embeddings: Any, **kwargs: Any) -> Any:
        attend = self.ALL_ATTENTION_FUNCTIONS.get_interface("xattn", None)
        return self.o_proj(attend(self.q_proj(hidden_states)) * self.gate)

    monkeypatch.setitem(forward.__globals__, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    model = make("llama")
    monkeypatch.setattr(LlamaAttention, "forward", forward)
    with pytest.raises(xattn.InvalidArgumentError, match=r"LlamaAttention .* has gate, want"):
        optimize(model)


def test_a_forward_that_someone_exchanged_is_refused() -> None:
    model = make("llama")
    module = model.model.layers[0].self_attn
    module.forward = MethodType(LlamaAttention.forward, module)
    with pytest.raises(xattn.InvalidArgumentError, match="whose forward was exchanged"):
        optimize(model)


@torch.no_grad()
def test_at_load() -> None:
    if VERSION < (5, 0):
        with pytest.raises(ImportError, match="load the model, then optimize"), optimized():
            pass
        return
    if VERSION < (5, 24):
        pytest.importorskip("torchvision", reason="this transformers imports all image processors to exchange a class")
    config = make("llama").config
    with optimized():
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="xattn").eval()
    kinds = {type(module) for name, module in model.named_modules() if name.endswith("self_attn")}
    assert all(issubclass(kind, LlamaAttention) and kind is not LlamaAttention for kind in kinds)
    model.load_state_dict(make("llama").state_dict())
    torch.testing.assert_close(model(tokens()).logits, make("llama")(tokens()).logits, rtol=0, atol=2e-5)
    assert make("llama").model.layers[0].self_attn.__class__ is LlamaAttention
    assert len(model(tokens(), output_hidden_states=True).hidden_states) == 3
