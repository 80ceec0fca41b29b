"""What is done with a model: each scenario runs it and returns tensors, the same for every implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from families.models import DECODERS, ENCODERS, MULTIMODAL, SEQ2SEQ, VISION, Family, inputs, make
from integrations.tiny_models import VERSION, tokens
from torch import Tensor
from transformers import Cache, GenerationMixin, LogitsProcessor

from xattn.integrations.transformers import continuous_batching, make_cache

NEW = 6  # tokens that are generated
CACHE = "cache" if VERSION >= (5, 24) else "past_key_values"
Outputs = Mapping[str, Tensor]
GENERATES = (DECODERS, SEQ2SEQ, MULTIMODAL)
ALL = (DECODERS, ENCODERS, SEQ2SEQ, VISION, MULTIMODAL)


@dataclass(frozen=True)
class Call:
    """One run of a scenario.

    forced: in generation the tokens that are taken, whatever the model says. None: its own. A dtype of 16 bits may
    choose otherwise between two that are as good: there those of float32 are forced, and the logits compared.
    """

    family: Family
    implementation: str
    dtype: torch.dtype = torch.float32
    forced: Tensor | None = None

    def model(self, seed: int = 0) -> Any:
        return make(self.family, self.implementation, self.dtype, seed)


@dataclass(frozen=True)
class Scenario:
    """label: its column. means: a line about it. kinds: of families that can. run: of one call.

    expected: what is right, None: `run` by eager attention. near: of a scenario that rounds on purpose, what it rounds.
    half: in bfloat16 as well.
    """

    label: str
    means: str
    run: Callable[[Call], Outputs]
    kinds: tuple[str, ...] = ALL
    expected: Callable[[Call], Outputs] | None = None
    half: bool = False
    near: Callable[[Call], Outputs] | None = None


def _cast(given: Any, dtype: torch.dtype) -> Any:
    """Floats, pixels for example, in the dtype of the model."""
    return {name: item.to(dtype) if item.is_floating_point() else item for name, item in given.items()}


def _shown(family: Family, out: Any, mask: Tensor | None) -> Outputs:
    """What a model returns, 0 where there is padding."""
    if family.kind == VISION and family.model != "ViTModel":
        names = ("logits_per_image", "text_embeds", "image_embeds")
        shown = {name: out[name] for name in names}
        last = out.text_model_output.last_hidden_state
        return {**shown, "text": last if mask is None else last * mask[..., None]}
    first = out[0]
    if mask is not None and first.shape[:2] == mask.shape:
        first = first * mask[..., None]
    return {"outputs": first}


def _forward(call: Call, side: str, model: Any = None, **arguments: Any) -> Outputs:
    model = model or call.model()
    given = {**_cast(inputs(call.family, side), call.dtype), **arguments}
    if call.family.kind == SEQ2SEQ:
        given["decoder_input_ids"] = tokens()[:, :6]
    return _shown(call.family, model(**given), given.get("attention_mask"))


def forward(side: str) -> Callable[[Call], Outputs]:
    @torch.no_grad()
    def run(call: Call) -> Outputs:
        return _forward(call, side)

    return run


def _gradients(call: Call, **checkpointing: Any) -> Outputs:
    """In training mode, which none of these models has dropout in."""
    model = call.model().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if checkpointing:
        model.gradient_checkpointing_enable(checkpointing)
    side = "left" if "attention_mask" in inputs(call.family) else "none"
    extra: dict[str, Any] = {"use_cache": False} if call.family.kind in GENERATES else {}
    out = _forward(call, side, model, **extra)
    torch.manual_seed(4)
    torch.stack([(item * torch.randn(item.shape)).sum() for item in out.values()]).sum().backward()
    return {name: item.grad for name, item in model.named_parameters() if item.grad is not None}


def training(call: Call) -> Outputs:
    return _gradients(call)


def checkpointing(call: Call) -> Outputs:
    return _gradients(call, use_reentrant=False)


class _Forced(LogitsProcessor):
    def __init__(self, tokens: Tensor, before: int) -> None:
        self.tokens, self.before = tokens, before

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.tokens[:, input_ids.shape[1] - self.before]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def _generated(
    call: Call, side: str = "left", rows: int = 2, model: Any = None, cache: Cache | None = None, **arguments: Any
) -> Outputs:
    """Tokens, and the logits of each."""
    model = model or call.model()
    given = _cast(inputs(call.family, side if "attention_mask" in inputs(call.family) else "none", rows), call.dtype)
    before = 1 if call.family.kind == SEQ2SEQ else 12
    if call.forced is not None:
        arguments["logits_processor"] = [_Forced(call.forced, before)]
    if cache is not None:
        arguments[CACHE] = cache
    # The one of all models: Whisper's own cuts sound in pieces.
    out = GenerationMixin.generate(
        model,
        **given,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **arguments,
    )
    return {"tokens": out.sequences[:, before:], "logits": torch.stack(out.logits, 1)}


def dynamic(call: Call) -> Outputs:
    return _generated(call)


def static(call: Call) -> Outputs:
    return _generated(call, cache_implementation="static")


def own_cache(call: Call) -> Outputs:
    model = call.model()
    if call.implementation == "eager":
        return _generated(call, model=model)
    return _generated(call, model=model, cache=make_cache(model, 12 + NEW))


def quantised(call: Call) -> Outputs:
    model = call.model()
    return _generated(call, model=model, cache=transformers.QuantizedCache("fp8", model.config))


def beams(call: Call) -> Outputs:
    return _tokens(_generated(call, num_beams=3))


def assisted(call: Call) -> Outputs:
    """By a model that is right now and then: the same, its weights moved a little."""
    assistant = call.model()
    generator = torch.Generator().manual_seed(6)
    for parameter in assistant.parameters():
        parameter.data += 0.1 * parameter.data.std() * torch.randn(parameter.shape, generator=generator)
    return _tokens(_generated(call, "none", rows=1, assistant_model=assistant))


def look_up(call: Call) -> Outputs:
    return _tokens(_generated(call, "none", rows=1, prompt_lookup_num_tokens=2))


def _tokens(out: Outputs) -> Outputs:
    """Which logits these ways return differs; which tokens does not."""
    return {"tokens": out["tokens"]}


# Packed sequences

LENGTHS = (5, 1, 6)
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]
CU_SEQLENS = torch.tensor([0, 5, 6, 12], dtype=torch.int32)


@torch.no_grad()
def packed_positions(call: Call) -> Outputs:
    return {"outputs": call.model()(tokens()[:1], position_ids=POSITIONS, use_cache=False)[0]}


@torch.no_grad()
def packed_cu_seqlens(call: Call) -> Outputs:
    sequences = {"cu_seq_lens_q": CU_SEQLENS, "cu_seq_lens_k": CU_SEQLENS, "max_length_q": 6, "max_length_k": 6}
    return {"outputs": call.model()(tokens()[:1], position_ids=POSITIONS, use_cache=False, **sequences)[0]}


@torch.no_grad()
def each_alone(call: Call) -> Outputs:
    """Eager attention lets the packed sequences of some families see each other: here no two are together."""
    model = call.model()
    return {"outputs": torch.cat([model(part, use_cache=False)[0] for part in tokens()[:1].split(LENGTHS, 1)], 1)}


# Continuous batching

PROMPTS = [tokens()[0].tolist(), tokens()[1, :5].tolist()]


def batched(call: Call) -> Outputs:
    model = call.model()
    config = transformers.GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    settings = transformers.ContinuousBatchingConfig(block_size=8, num_blocks=16, max_batch_tokens=16)
    with continuous_batching():
        results = model.generate_batch(PROMPTS, generation_config=config, continuous_batching_config=settings)
    for result in results.values():
        if result.error is not None:
            raise RuntimeError(result.error)
    return {f"tokens {i}": torch.tensor(result.generated_tokens) for i, result in enumerate(results.values())}


def each_prompt_alone(call: Call) -> Outputs:
    model = call.model()
    given = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1}
    return {
        f"tokens {i}": model.generate(torch.tensor([prompt]), **given)[0, len(prompt) :]
        for i, prompt in enumerate(PROMPTS)
    }


# A static cache, compiled

STEPS = 4
GRAPHS = "graphs"  # an output of which less is as good


@torch.no_grad()
def compiled(call: Call) -> Outputs:
    """A prompt, then steps by a compiled model. Beside the logits: how many graphs."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = call.model()
    cache = transformers.StaticCache(model.config, 5 + STEPS)
    text = torch.randint(3, 99, (1, 5 + STEPS), generator=torch.Generator().manual_seed(7))
    outputs = [model(text[:, :5], **{CACHE: cache})[0]]
    step: Callable[..., Any] = torch.compile(model, backend="eager")
    for i in range(5, 5 + STEPS):
        outputs.append(step(text[:, i : i + 1], **{CACHE: cache})[0].clone())
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    return {"outputs": torch.cat(outputs, 1), GRAPHS: torch.tensor(graphs)}


SCENARIOS = (
    Scenario("forward", "a call of the model, without padding", forward("none"), half=True),
    Scenario("left", "the first of two rows is padded on the left", forward("left"), half=True),
    Scenario("right", "the same on the right", forward("right"), half=True),
    Scenario(
        "packed", "three sequences in a row, told by `position_ids`", packed_positions, (DECODERS,), each_alone, True
    ),
    Scenario("cu_seq_lens", "the same, told by `cu_seq_lens_*` too", packed_cu_seqlens, (DECODERS,), each_alone, True),
    Scenario("dynamic", "greedy decoding, transformers' growing cache", dynamic, GENERATES, half=True),
    Scenario("static", "the same, its static cache", static, GENERATES, half=True),
    Scenario("own", "the same, the cache of `make_cache`", own_cache, GENERATES, half=True),
    Scenario(
        "fp8", "the same, transformers' quantised cache", quantised, (DECODERS, MULTIMODAL), half=True, near=dynamic
    ),
    Scenario("beams", "three beams", beams, GENERATES),
    Scenario("assisted", "greedy, guesses by a smaller model", assisted, (DECODERS, SEQ2SEQ)),
    Scenario("look-up", "greedy, guesses from the prompt", look_up, (DECODERS, SEQ2SEQ)),
    Scenario("batched", "`generate_batch`, continuous batching", batched, (DECODERS,), each_prompt_alone),
    Scenario(
        "compiled",
        f"{STEPS} steps over a static cache, compiled, in no more graphs than by eager attention",
        compiled,
        (DECODERS,),
    ),
    Scenario("training", "gradients of all weights, with padding", training, half=True),
    Scenario("checkpoints", "the same, with gradient checkpointing", checkpointing),
)
