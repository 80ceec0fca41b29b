"""Packed sequences and continuous batching: each sequence as if it were alone, by `varlen_attention`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from integrations.beside_eager import TOLERANCE, VISIBLE, make
from integrations.tiny_models import VERSION, tokens
from support import extended
from torch import Tensor

import xattn
from xattn.integrations.transformers import attention, continuous_batching
from xattn.integrations.transformers import packed as adapter

LENGTHS = (5, 1, 6)
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]
CU_SEQLENS = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
KERNEL = {"cu_seq_lens_q": CU_SEQLENS, "cu_seq_lens_k": CU_SEQLENS, "max_length_q": 6, "max_length_k": 6}
WAYS: dict[str, dict[str, Any]] = {
    "position_ids": {"position_ids": POSITIONS},
    "position_ids and cu_seq_lens": {"position_ids": POSITIONS, **KERNEL},
    "cu_seq_lens": KERNEL,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """cu_seqlens_q of each call of the packed op."""
    seen: list[list[int]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, *rest: Any, **arguments: Any) -> Tensor:
        seen.append(cu_seqlens_q.tolist())
        out: Tensor = xattn.varlen_attention(q, k, v, cu_seqlens_q, *rest, **arguments)
        return out

    monkeypatch.setattr(adapter, "varlen_attention", spy)
    return seen


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gpt_oss", *extended("llama", "mistral", "gemma2", "deepseek_v3")])
@torch.no_grad()
def test_packed_sequences_are_what_they_are_alone(name: str, way: str, calls: list[list[int]]) -> None:
    """Beside each sequence alone: eager attention itself lets the packed ones of gpt-oss see each other, whose mask is
    made without position_ids."""
    text = tokens()[:1]
    if way == "cu_seq_lens" and name == "deepseek_v3" and VERSION < (5,):
        pytest.skip("its layers hand on no arguments there")
    got = make(name, "xattn")(text, use_cache=False, **WAYS[way])[0]
    eager = make(name, "eager")
    alone = torch.cat([eager(part)[0] for part in text.split(LENGTHS, 1)], 1)
    assert float((got - alone).abs().max()) <= TOLERANCE
    assert float((eager(text)[0] - alone).abs().max()) > VISIBLE
    assert calls == [CU_SEQLENS.tolist()] * 2


@torch.no_grad()
def test_positions_say_nothing_where_there_is_a_mask_or_a_cache(calls: list[list[int]]) -> None:
    """transformers' own rule, of the models that hand them to the mask."""
    ours, eager = make("gpt_oss", "xattn"), make("gpt_oss", "eager")
    given: list[dict[str, Any]] = [{}, {"use_cache": False, "attention_mask": torch.ones(1, 12, dtype=torch.long)}]
    for arguments in given:
        got, expected = (model(tokens()[:1], position_ids=POSITIONS, **arguments)[0] for model in (ours, eager))
        assert float((got - expected).abs().max()) <= TOLERANCE
    assert not calls


@torch.no_grad()
def test_rows_of_a_batch_are_packed_one_after_the_other(calls: list[list[int]]) -> None:
    positions = torch.cat([POSITIONS, torch.arange(12)[None]])
    got = make("mistral", "xattn")(tokens(), position_ids=positions, use_cache=False)[0]
    whole = make("mistral", "eager")(tokens()[1:])[0]
    assert float((got[1:] - whole).abs().max()) <= TOLERANCE
    assert calls == [[0, 5, 6, 12, 24]] * 2


def test_gradients_of_packed_sequences() -> None:
    gradients = []
    for implementation in ("eager", "xattn"):
        model = make("llama", implementation).train()
        model(tokens()[:1], position_ids=POSITIONS, use_cache=False)[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert float((gradients[1][name] - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-7, name


def test_dropout_between_packed_sequences_is_dropout() -> None:
    """`varlen_attention` has none: the mask becomes real."""
    model = make("llama", "xattn", attention_dropout=0.5).train()
    first, second = (model(tokens()[:1], position_ids=POSITIONS, use_cache=False)[0] for _ in range(2))
    assert float((first - second).detach().abs().max()) > VISIBLE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({**KERNEL, "cu_seq_lens_k": None}, "cu_seq_lens_k: got None beside the other"),
        ({**KERNEL, "attention_mask": torch.tensor([[0] + [1] * 11])}, "cu_seq_lens_q: got sequences beside another"),
        ({**KERNEL, "attention_mask": torch.ones(1, 1, 12, 12).bool()}, "cu_seq_lens_q: got sequences beside a mask"),
        (
            {**KERNEL, "cu_seq_lens_q": torch.tensor([0, 4, 6, 12]), "position_ids": POSITIONS},
            r"cu_seq_lens_q: got \[0, 4, 6, 12\], want \[0, 5, 6, 12\], as position_ids say",
        ),
        ({"seq_idx": CU_SEQLENS}, "seq_idx: got a tensor"),
    ],
    ids=["one of two", "padding", "a mask", "other sequences", "seq_idx"],
)
def test_what_does_not_go_together(given: dict[str, Any], said: str) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=said):
        make("llama", "xattn")(tokens()[:1], use_cache=False, **given)


@torch.no_grad()
def test_a_layer_that_has_the_keys_of_another_chooses_its_own_lengths() -> None:
    """In continuous batching they come by kind of layer, and a cache chooses where it is asked."""
    query, key, value = torch.randn(3, 1, 4, 12, 8)
    module = torch.nn.Module()
    module.layer_type = "sliding_attention"  # type: ignore[assignment]
    given: dict[str, Any] = {**KERNEL, "is_causal": True}
    by_kind = {"full_attention": CU_SEQLENS[:2], "sliding_attention": CU_SEQLENS}
    lengths = {"cu_seq_lens_k": by_kind, "max_length_k": {"full_attention": 5, "sliding_attention": 6}}
    expected = attention.attention_forward(module, query, key, value, None, **given)[0]
    got = attention.attention_forward(module, query, key, value, None, **{**given, **lengths})[0]
    assert torch.equal(got, expected)


# Continuous batching

PROMPTS = [tokens()[0].tolist(), tokens()[1, :5].tolist(), tokens()[1, :8].tolist()]


def generated(model: Any) -> list[list[int]]:
    config = transformers.GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1)
    batching = transformers.ContinuousBatchingConfig(block_size=8, num_blocks=16, max_batch_tokens=16)
    results = model.generate_batch(PROMPTS, generation_config=config, continuous_batching_config=batching)
    return [list(result.generated_tokens) for result in results.values()]


@pytest.mark.skipif(VERSION < (5, 24), reason="another gate")
@pytest.mark.parametrize("name", ["mistral", *extended("llama", "gemma2", "gpt_oss")])
def test_continuous_batching(name: str, calls: list[list[int]]) -> None:
    eager, ours = (make(name, implementation) for implementation in ("eager", "xattn"))
    with continuous_batching():
        got = generated(ours)
    assert len(calls) >= 2 * 5
    assert max(len(cu_seqlens) for cu_seqlens in calls) > 2  # several sequences in one step
    for prompt, new in zip(PROMPTS, got, strict=True):
        alone = eager.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=-1)
        assert new == alone[0, len(prompt) :].tolist()
    with pytest.raises(ValueError, match="Implementation xattn is not supported"):
        generated(ours)


@pytest.mark.skipif(VERSION >= (5, 24), reason="that one is served")
def test_continuous_batching_of_a_release_that_was_not_read() -> None:
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.24"), continuous_batching():
        pass
