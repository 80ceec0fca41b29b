"""The transformers adapter against transformers' own eager attention, on tiny models with random weights.

Query and key weights are enlarged, so that a softcap, a window, a sink or a mask that got lost moves the outputs by
thousands of tolerances; the negative controls lose each of them on purpose and require the comparison to notice.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function, create_bidirectional_mask

import xattn
from xattn.integrations.transformers import attention as adapter
from xattn.integrations.transformers import register
from xattn.integrations.transformers.described_mask import DescribedMask

TOLERANCE = 1e-5
VISIBLE = 1e-2  # what a lost feature must cost at least

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DECODER = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
MOE = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# name -> (model, config, its arguments). Windows of 4 lie well inside the 12 tokens.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", SMALL),
    "modernbert": ("ModernBertModel", "ModernBertConfig", {**SMALL, "pad_token_id": 0, "local_attention": 4}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 4}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**DECODER, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**DECODER, "head_dim": 8, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", {**DECODER, **MLA, **MOE, "num_key_value_heads": 4}),
}
ENCODERS = ["bert", "modernbert"]
DECODERS = ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()
    transformers.logging.set_verbosity_error()


def make(name: str, implementation: str, **changes: Any) -> PreTrainedModel:
    """The same weights for the same name, whatever the implementation. Sinks and q, k projections are enlarged."""
    model_name, config_name, arguments = MODELS[name]
    config = getattr(transformers, config_name)(**{**copy.deepcopy(arguments), **changes})
    torch.manual_seed(0)
    model = getattr(transformers, model_name)._from_config(config, attn_implementation=implementation).eval()
    for parameter_name, parameter in model.named_parameters():
        if re.search(r"q_proj|k_proj|query\.|key\.|q_b_proj|Wqkv", parameter_name):
            parameter.data.mul_(20)
        if parameter_name.endswith("sinks"):
            parameter.data.fill_(2.0)
    return model


def tokens() -> Tensor:
    return torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(1))


def padding(side: str) -> Tensor:
    """(2, 12), 1 for a token: the first row is padded by 5 on the side, the second not at all."""
    mask = torch.ones(2, 12, dtype=torch.long)
    if side == "right":
        mask[0, 7:] = 0
    if side == "left":
        mask[0, :5] = 0
    return mask


@torch.no_grad()
def distance(a: PreTrainedModel, b: PreTrainedModel, side: str = "none", **arguments: Any) -> float:
    """Largest difference of the outputs of two models, where there is a token."""
    mask = padding(side)
    first, second = (model(tokens(), attention_mask=mask, **arguments)[0] for model in (a, b))
    return float(((first - second).abs() * mask.unsqueeze(2)).max())


# Encoders and decoders, prefill


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
        out = xattn.attention(q, k, v, **arguments)
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
        return xattn.attention(q, k, v, **arguments)

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


# Masks


class Recorder:
    """An implementation that serves by xattn and keeps what the masks that the layers got hold."""

    def __init__(self) -> None:
        self.masks: list[Tensor | None] = []
        serve = AttentionInterface()["xattn"]

        def forward(module: Any, query: Any, key: Any, value: Any, mask: Tensor | None, **arguments: Any) -> Any:
            self.masks.append(mask.visible if isinstance(mask, DescribedMask) else mask)
            return serve(module, query, key, value, mask, **arguments)

        AttentionInterface.register("recorder", forward)
        AttentionMaskInterface.register("recorder", AttentionMaskInterface()["xattn"])

    def shapes(self) -> set[tuple[int, ...] | None]:
        return {None if mask is None else tuple(mask.shape) for mask in self.masks}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    yield Recorder()
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("recorder", None)


@pytest.mark.parametrize(
    ("name", "side", "shapes"),
    [
        ("bert", "none", {None}),
        ("bert", "right", {(2, 1, 1, 12)}),
        ("bert", "left", {(2, 1, 1, 12)}),
        ("llama", "none", {None}),
        ("llama", "left", {(2, 1, 1, 12)}),
        ("mistral", "none", {None}),
        ("gpt_oss", "none", {None}),
        ("gpt_oss", "right", {(2, 1, 1, 12)}),
    ],
)
def test_masks_are_no_larger_than_needed(
    name: str, side: str, shapes: set[tuple[int, ...] | None], recorder: Recorder
) -> None:
    make(name, "recorder")(tokens(), attention_mask=padding(side))
    assert recorder.shapes() == shapes
    assert all(mask.dtype == torch.bool for mask in recorder.masks if mask is not None)


def test_a_caller_that_cannot_do_without_a_mask_gets_all_of_it() -> None:
    """Models that go on to join the mask to another ask for it whole."""
    config = make("bert", "xattn").config
    embeds = torch.zeros(2, 12, 32)
    for side in ("none", "right"):
        mask = create_bidirectional_mask(config, embeds, padding(side), allow_is_bidirectional_skip=False)
        assert torch.equal(mask, padding(side).bool()[:, None, None, :].expand(2, 1, 12, 12))


def test_a_window_longer_than_the_text_needs_no_mask(recorder: Recorder) -> None:
    make("mistral", "recorder", sliding_window=13)(tokens())
    assert recorder.shapes() == {None}


def test_generation_without_padding_makes_no_square_mask(recorder: Recorder) -> None:
    arguments = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    make("llama", "recorder").generate(tokens(), **arguments)
    assert recorder.shapes() == {None}
    recorder.masks.clear()
    make("llama", "recorder").generate(tokens(), **arguments, cache_implementation="static")
    assert recorder.shapes() == {None, (1, 1, 1, 15)}  # the prefill of an empty cache, then one query at a time


@pytest.mark.parametrize("kind", ["float", "bool"])
@torch.no_grad()
def test_a_mask_of_the_users_own(kind: str) -> None:
    """(batch, 1, seqlen_q, seqlen_k), the whole truth: not causal unless it says so."""
    visible = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(2)) > 0.5
    visible[..., 0] = True
    added = torch.zeros(2, 1, 12, 12).masked_fill(~visible, torch.finfo(torch.float32).min)
    expected = make("llama", "eager")(tokens(), attention_mask=added)[0]
    got = make("llama", "xattn")(tokens(), attention_mask=visible if kind == "bool" else added)[0]
    assert float((got - expected).abs().max()) <= TOLERANCE
    assert float((got - make("llama", "eager")(tokens())[0]).abs().max()) > VISIBLE


@torch.no_grad()
def test_packed_sequences_stay_apart() -> None:
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]).expand(2, -1)
    packed = make("llama", "xattn")(tokens(), position_ids=position_ids, use_cache=False)[0]
    alone = make("llama", "eager")(tokens()[:, 5:])[0]
    assert float((packed[:, 5:] - alone).abs().max()) <= TOLERANCE


@torch.no_grad()
def test_encoder_decoder_with_position_bias() -> None:
    """T5: a learned bias beside padding and causality, and attention across to the encoder."""
    arguments = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    models = []
    for implementation in ("eager", "xattn"):
        torch.manual_seed(0)
        config = transformers.T5Config(**arguments, decoder_start_token_id=0)
        model = transformers.T5ForConditionalGeneration._from_config(config, attn_implementation=implementation).eval()
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.data.mul_(20)
        models.append(model)
    for side in ("none", "right", "left"):
        text = {"attention_mask": padding(side), "decoder_input_ids": tokens()[:, :6]}
        eager, ours = (model(tokens(), **text)[0] for model in models)
        assert float((eager - ours).abs().max()) <= TOLERANCE
    eager, ours = (model.generate(tokens(), attention_mask=padding("right"), max_new_tokens=6) for model in models)
    assert torch.equal(eager, ours)


# Training


def test_gradients_equal_eager() -> None:
    gradients = []
    for implementation in ("eager", "xattn"):
        model = make("bert", implementation, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        weights = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(3))
        mask = padding("right")
        (model(tokens(), attention_mask=mask)[0] * weights * mask.unsqueeze(2)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    eager, ours = gradients
    assert eager.keys() == ours.keys()
    assert any("query.weight" in name for name in eager)
    for name, expected in eager.items():
        assert float((ours[name] - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-5, name


def test_dropout_is_on_in_training_alone() -> None:
    model = make("bert", "xattn", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    outputs = {}
    for training in (False, True):
        model.train(training)
        for seed in (0, 1):
            torch.manual_seed(seed)
            outputs[training, seed] = model(tokens())[0].detach()
    assert torch.equal(outputs[False, 0], outputs[False, 1])
    assert float((outputs[True, 0] - outputs[True, 1]).abs().max()) > VISIBLE


def test_determinism_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def spy(*tensors: Tensor, deterministic: bool, **arguments: Any) -> Tensor:
        asked.append(deterministic)
        return xattn.attention(*tensors, deterministic=deterministic, **arguments)

    monkeypatch.setattr(adapter, "attention", spy)
    for choice in (False, True):
        make("modernbert", "xattn", deterministic_flash_attn=choice)(tokens())
    assert asked == [False, False, True, True]


def test_compiles_without_a_graph_break() -> None:
    model = make("llama", "xattn")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = make("llama", "eager")(tokens(), attention_mask=padding("right"), use_cache=False)[0]
        got = compiled(tokens(), attention_mask=padding("right"), use_cache=False)[0]
    assert float(((got - expected).abs() * padding("right").unsqueeze(2)).max()) <= TOLERANCE


# What raises


@pytest.mark.parametrize("name", ["surprise", *adapter.REFUSED])
def test_an_argument_that_is_not_served_raises_by_name(name: str) -> None:
    model = make("llama", "xattn")
    with pytest.raises(xattn.InvalidArgumentError, match=rf"^{name}: "):
        forward(model, **{name: torch.tensor([0, 5, 12])})
    assert torch.equal(forward(model, **{name: None}), forward(model))  # None is off, everywhere in xattn


def forward(model: PreTrainedModel, **arguments: Any) -> Tensor:
    """One attention layer's call, without a mask."""
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(2, 4, 12, 8, generator=generator)
    key, value = (torch.randn(2, 2, 12, 8, generator=generator) for _ in range(2))
    layer = model.model.layers[0].self_attn
    out: Tensor = adapter.attention_forward(layer, query, key, value, None, is_causal=True, **arguments)[0]
    return out


def test_an_unknown_argument_of_a_model_call_raises() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=r"^surprise: got 3"):
        make("llama", "xattn")(tokens(), surprise=3)


@pytest.mark.parametrize("name", adapter.HARMLESS)
@torch.no_grad()
def test_a_harmless_argument_changes_nothing_in_eager_either(name: str) -> None:
    """The claim of the list: eager attention, which ignores it too, gives what it gives without."""
    value: Any = torch.arange(12).expand(2, -1) if name == "position_ids" else 1
    eager, ours = make("llama", "eager"), make("llama", "xattn")
    without = eager(tokens())[0]
    assert torch.equal(eager(tokens(), **{name: value})[0], without)
    assert float((ours(tokens(), **{name: value})[0] - without).abs().max()) <= TOLERANCE


def test_attention_weights_cannot_be_had() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="output_attentions"):
        make("llama", "xattn")(tokens(), output_attentions=True)


def test_an_integer_mask_raises() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got int64"):
        make("llama", "xattn")(tokens(), attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.int64))


@pytest.mark.parametrize("says", ["nothing", "causal"])
def test_a_layer_without_mask_that_does_not_say_that_it_is_not_causal(says: str) -> None:
    """Eager attention takes no mask for "sees all"; transformers' sdpa asks the module, and takes silence for yes."""
    layer = nn.Module()
    if says == "causal":
        layer.is_causal = True
    query, key, value = (torch.randn(1, 2, 5, 8) for _ in range(3))
    with pytest.raises(xattn.InvalidArgumentError, match="attention_mask: got None at a Module that"):
        adapter.attention_forward(layer, query, key, value, None)


@torch.no_grad()
def test_an_encoder_that_does_not_say_whether_it_is_causal() -> None:
    """Its mask does. transformers' sdpa takes it for causal, which is wrong."""
    outputs = []
    for implementation in ("eager", "xattn"):
        torch.manual_seed(0)
        outputs.append(
            transformers.SplinterModel._from_config(
                transformers.SplinterConfig(**SMALL), attn_implementation=implementation
            ).eval()(tokens())[0]
        )
    assert float((outputs[0] - outputs[1]).abs().max()) <= TOLERANCE


# A window without a mask: for models that make no masks


def attend(seqlen_q: int, seqlen_k: int, window: int, is_causal: bool) -> tuple[Tensor, Tensor]:
    """(got, the same by hand) of one call with sliding_window and no mask."""
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(1, 1, seqlen_q, 8, generator=generator)
    key, value = (torch.randn(1, 1, seqlen_k, 8, generator=generator) for _ in range(2))
    got = adapter.attention_forward(nn.Module(), query, key, value, None, sliding_window=window, is_causal=is_causal)[0]
    i = torch.arange(seqlen_q)[:, None] + (seqlen_k - seqlen_q)
    j = torch.arange(seqlen_k)[None]
    scores = (query @ key.mT / 8**0.5).masked_fill((j > i) | (j <= i - window), -torch.inf)
    return got, (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k", "window"), [(9, 9, 4), (9, 9, 9), (9, 9, 20)])
def test_window_without_mask(seqlen_q: int, seqlen_k: int, window: int) -> None:
    got, expected = attend(seqlen_q, seqlen_k, window, is_causal=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


def test_window_without_mask_or_causality_raises() -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="sliding_window: got 4"):
        attend(9, 9, 4, is_causal=False)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(9, 5), (5, 9), (1, 9)])
def test_causality_over_other_sizes_without_mask_raises(seqlen_q: int, seqlen_k: int) -> None:
    """Nothing says where the diagonal is."""
    with pytest.raises(xattn.InvalidArgumentError, match=f"is_causal with {seqlen_q} queries and {seqlen_k} keys"):
        attend(seqlen_q, seqlen_k, 20, is_causal=True)


# Registration


@pytest.mark.parametrize("name", ["xattn_flash", "sdpa", "eager", "paged|xattn", "org/xattn"])
def test_a_name_that_means_something_to_transformers_is_refused(name: str) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="name: got"):
        register(name)


def test_another_name() -> None:
    register("mine")
    try:
        assert distance(make("llama", "eager"), make("llama", "mine"), "left") <= TOLERANCE
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop("mine")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'xattn[hf]'")):
        register()


def test_with_an_old_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers exchanges its module object on the way: the one imported above may not be the one in use.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.56.2")
    with pytest.raises(ImportError, match=r"transformers >= 4\.57, here is 4\.56\.2"):
        register()


def test_importing_the_adapter_imports_no_transformers() -> None:
    code = "import sys, xattn.integrations.transformers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Real weights


def test_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo shows: real weights, real text, one padded batch."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    import minilm

    batch = minilm.tokenize(minilm.SENTENCES)
    eager, ours = (minilm.load(name) for name in ("eager", "xattn"))
    embeddings = minilm.embed(ours, batch)
    assert embeddings.shape == (36, 384)
    assert float((embeddings - minilm.embed(eager, batch)).abs().max()) <= minilm.TOLERANCE
    assert len(minilm.watch(ours, batch)) == 6
    assert not minilm.watch(eager, batch)
    assert all(j - i == 1 for _, i, j in minilm.closest(embeddings, 10))  # paraphrases are neighbours in the list
