"""The adapter against transformers' own eager attention: prefill, generation, and what the comparison would notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from integrations.beside_eager import DECODERS, ENCODERS, TOLERANCE, VISIBLE, distance, make
from integrations.tiny_models import VERSION, padding, tokens
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

import xattn
from xattn.integrations.transformers import attention as adapter


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("name", ENCODERS + DECODERS)
def test_forward_equals_eager(name: str, side: str) -> None:
    assert distance(make(name, "eager"), make(name, "xattn"), side) <= TOLERANCE


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_forward_equals_eager_on_the_reference_backend(name: str) -> None:
    with xattn.use_backend("reference"):
        assert distance(make(name, "eager"), make(name, "xattn"), "left") <= TOLERANCE


def test_the_models_reach_xattn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer makes one call with views of the model's own memory, and gets BSNH back."""
    calls: list[tuple[Tensor, ...]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
        out: Tensor = xattn.attention(q, k, v, **arguments)
        calls.append((q, k, v, out))
        return out

    monkeypatch.setattr(adapter, "attention", spy)
    make("llama", "xattn")(tokens(), use_cache=False)
    assert len(calls) == 2
    for q, k, v, out in calls:
        assert q.shape == out.shape == (2, 12, 4, 8)
        assert k.shape == v.shape == (2, 12, 2, 8)
        assert all(tensor.is_contiguous() for tensor in (q, k, v, out))

    calls.clear()
    make("llama", "eager")(tokens())
    assert not calls


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
        given.extend((q, k, v))
        out: Tensor = xattn.attention(q, k, v, **arguments)
        return out

    monkeypatch.setattr(adapter, "attention", spy)
    query, key, value = (torch.randn(2, 12, 4, 8).transpose(1, 2) for _ in range(3))
    out, weights = adapter.attention_forward(nn.Module(), query, key, value, None, is_causal=True)
    assert [t.data_ptr() for t in given] == [t.data_ptr() for t in (query, key, value)]
    assert out.shape == (2, 12, 4, 8)
    assert weights is None


# Negative controls: an adapter that loses something is noticed by the comparison above


@pytest.fixture
def losing() -> Iterator[Any]:
    """Register an implementation that loses the named arguments of attention, or of the mask."""

    def register_losing(attention: tuple[str, ...] = (), mask: dict[str, Any] | None = None) -> str:
        attend, make_mask = AttentionInterface()["xattn"], AttentionMaskInterface()["xattn"]

        def forward(*tensors: Any, **arguments: Any) -> Any:
            return attend(*tensors, **{name: value for name, value in arguments.items() if name not in attention})

        AttentionInterface.register("losing", forward)
        AttentionMaskInterface.register("losing", lambda **arguments: make_mask(**{**arguments, **(mask or {})}))
        return "losing"

    yield register_losing
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("losing", None)


@pytest.mark.parametrize(
    ("name", "side", "attention", "mask"),
    [
        ("gemma2", "none", ("softcap",), {}),
        ("gpt_oss", "none", ("s_aux",), {}),
        ("gemma2", "none", ("scaling",), {}),
        ("mistral", "none", ("sliding_window",), {"mask_function": causal_mask_function, "local_size": None}),
        ("llama", "left", (), {"attention_mask": None}),
        ("bert", "right", (), {"attention_mask": None}),
    ],
    ids=["softcap", "sinks", "scale", "window", "padding of a decoder", "padding of an encoder"],
)
def test_the_comparison_sees_what_is_lost(
    name: str, side: str, attention: tuple[str, ...], mask: dict[str, Any], losing: Any
) -> None:
    # Gemma 2's scale is its own: make it another than 1/sqrt(headdim), or losing it would change nothing.
    changes = {"query_pre_attn_scalar": 32} if attention == ("scaling",) else {}
    eager = make(name, "eager", **changes)
    assert distance(eager, make(name, "xattn", **changes), side) <= TOLERANCE
    assert distance(eager, make(name, losing(attention, mask), **changes), side) > VISIBLE


@pytest.mark.skipif(VERSION < (5,), reason="is_causal=False is not heard by its models")
def test_the_comparison_sees_lost_causality() -> None:
    assert distance(make("llama", "eager"), make("llama", "xattn"), is_causal=False) <= TOLERANCE
    with torch.no_grad():
        both_ways = make("llama", "xattn")(tokens(), is_causal=False)[0]
        causal = make("llama", "xattn")(tokens())[0]
    assert float((both_ways - causal).abs().max()) > VISIBLE


# Generation


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_generate_equals_eager(name: str, side: str, cache: str) -> None:
    if name == "deepseek_v3" and cache == "static" and VERSION < (5,):
        pytest.skip("there values have the heads of keys in a static cache")
    results = []
    for implementation in ("eager", "xattn"):
        results.append(
            make(name, implementation).generate(
                tokens(),
                attention_mask=padding(side),
                min_new_tokens=6,
                max_new_tokens=6,
                do_sample=False,
                cache_implementation=cache,
                return_dict_in_generate=True,
                output_logits=True,
            )
        )
    eager, ours = results
    assert torch.equal(eager.sequences, ours.sequences)
    assert eager.sequences.shape == (2, 18)
    for step, expected in zip(ours.logits, eager.logits, strict=True):
        assert float((step - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
@torch.no_grad()
def test_chunked_prefill_equals_eager(name: str, static: bool) -> None:
    outputs = []
    for implementation in ("eager", "xattn"):
        model = make(name, implementation)
        cache = transformers.StaticCache(model.config, 20) if static else transformers.DynamicCache(config=model.config)
        chunks = [model(tokens()[:, a:b], past_key_values=cache)[0] for a, b in ((0, 5), (5, 9), (9, 10), (10, 12))]
        outputs.append(torch.cat(chunks, 1))
    whole = make(name, "eager")(tokens())[0]
    assert float((outputs[0] - outputs[1]).abs().max()) <= TOLERANCE
    assert float((outputs[1] - whole).abs().max()) <= TOLERANCE
