"""Models of Hugging Face transformers by xattn: decode, prefill, memory and copies, against transformers' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from common import Row, mib
from torch import Tensor

from xattn.integrations.transformers import make_cache, optimize, register
from xattn.measure import Timing, alternate, memory, operations
from xattn.plugin import dtype_name

CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 16, "num_key_value_heads": 4}
CONTEXT, PREFILL, WINDOW, PADDED, STEPS = 2048, 2048, 256, 128, 64
MEMORY_SEQLEN, MEMORY_MIB = 4096, 20.0
SHAPE = "4 layers, heads 16/4, d 64"

# How many times as fast as the other a decode step shall be: (dtype, batch, padded) and by whom.
DECODE: dict[tuple[torch.dtype, int, bool], dict[str, float]] = {
    (torch.bfloat16, 1, False): {"sdpa": 2.8, "sdpa, static cache": 1.0, "eager": 1.6},
    (torch.bfloat16, 2, False): {"sdpa": 3.5},
    (torch.bfloat16, 1, True): {"sdpa": 1.0},
    (torch.float32, 1, False): {"sdpa": 1.1, "sdpa, xattn's cache": 1.0},
}
# The same of a prefill: (window, padded).
FASTER = {(WINDOW, False): 2.5, (None, True): 1.25, (WINDOW, True): 2.2, (None, False): 0.95}


def rows(quick: bool) -> Iterator[Row]:
    register()
    transformers.logging.set_verbosity_error()
    seconds = 1.0 if quick else 20.0
    with torch.no_grad():
        for (dtype, batch, padded), bars in DECODE.items():
            timing = _decode(dtype, batch, padded, bars, seconds)
            what = f"decode step, {dtype_name(dtype)}, batch {batch}, {CONTEXT:,} keys{', left-padded' * padded}"
            for name, bar in bars.items():
                yield _faster(f"{what}, over {name}", timing, name, bar)
        for (window, padded), bar in FASTER.items():
            way = " and ".join([f"window {window}"] * bool(window) + ["left padding"] * padded) or "full"
            timing = _prefill(window, padded, seconds)
            yield _faster(f"prefill of {PREFILL:,}, float32, {way}, over sdpa", timing, "sdpa", bar)
        yield _memory()
        yield from _copies()
        yield _compiled(8 if quick else STEPS)


def _model(
    implementation: str, dtype: torch.dtype = torch.float32, layers: int = 4, window: int | None = None, **sizes: Any
) -> Any:
    """Llama's shape, with a window in each layer or without. xattn's are optimized."""
    given = {**SIZES, "vocab_size": 128, "num_hidden_layers": layers, "head_dim": 64, "pad_token_id": 0, **sizes}
    torch.manual_seed(0)
    if window is None:
        config, kind = transformers.LlamaConfig(**given), transformers.LlamaForCausalLM
    else:
        config = transformers.MistralConfig(**given, sliding_window=window)
        kind = transformers.MistralForCausalLM
    model = kind._from_config(config, attn_implementation=implementation, dtype=dtype).eval()
    if implementation == "xattn":
        optimize(model)
    return model


def _inputs(batch: int, seqlen: int, padded: bool) -> dict[str, Tensor]:
    seen = torch.ones(batch, seqlen, dtype=torch.long)
    if padded:
        seen[0, :PADDED] = 0
    return {"input_ids": torch.randint(3, 128, (batch, seqlen)), "attention_mask": seen}


def _decode(dtype: torch.dtype, batch: int, padded: bool, names: Any, seconds: float) -> Timing:
    def step_of(name: str) -> Callable[[], Tensor]:
        implementation = name.partition(",")[0]
        model = _model(implementation, dtype)
        if name == "sdpa, static cache":
            cache: Any = transformers.StaticCache(model.config, CONTEXT + 1)
        elif name in ("xattn", "sdpa, xattn's cache"):
            cache = make_cache(model, CONTEXT + 1)
        else:
            cache = transformers.DynamicCache(config=model.config)
        given = _inputs(batch, CONTEXT + 1, padded)
        model(given["input_ids"][:, :CONTEXT], attention_mask=given["attention_mask"][:, :CONTEXT], **{CACHE: cache})
        last = given["input_ids"][:, CONTEXT:]

        def step() -> Tensor:
            out: Tensor = model(last, attention_mask=given["attention_mask"], **{CACHE: cache})[0]
            cache.crop(-1)  # the same step each time
            return out

        return step

    return alternate({name: step_of(name) for name in ("xattn", *names)}, seconds=seconds)


def _prefill(window: int | None, padded: bool, seconds: float) -> Timing:
    given = _inputs(1, PREFILL, padded)

    def run_of(name: str) -> Callable[[], Tensor]:
        model = _model(name, window=window)
        return lambda: model(**given, use_cache=False, logits_to_keep=1)[0]

    return alternate({name: run_of(name) for name in ("xattn", "sdpa")}, seconds=seconds)


def _faster(what: str, timing: Timing, name: str, bar: float) -> Row:
    ratio = timing.ratio("xattn", name)
    measured = f"{1 / ratio:.2f}x as fast ({timing.p50('xattn') / 1e3:.2f} ms after {timing.p50(name) / 1e3:.2f})"
    label = f"{what} ({SHAPE})"
    return Row("huggingface", label, f">= {bar}x", measured, ratio, 1 / bar, timing.method, timing.as_dict(name))


def _memory() -> Row:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    given = _inputs(2, MEMORY_SEQLEN, True)
    peaks = {}
    for name in ("xattn", "sdpa"):
        model = _model(name, layers=2, **{**sizes, "head_dim": 32}).model
        model(**given, use_cache=False)
        peaks[name] = memory(lambda model=model: model(**given, use_cache=False)).peak
    what = f"peak memory of a left-padded prefill of {MEMORY_SEQLEN:,}, batch 2 (2 layers, heads 2/1, d 32)"
    measured = f"{mib(peaks['xattn'])} (sdpa {mib(peaks['sdpa'])})"
    method = "the CPU allocator's reports to torch's profiler, second call"
    limit = MEMORY_MIB * 2**20
    return Row("huggingface", what, f"<= {MEMORY_MIB:.0f} MiB", measured, peaks["xattn"], limit, method, dict(peaks))


def _copies() -> Iterator[Row]:
    """A layer's: what two models differ by, one of which has two layers more."""
    for way, tokens in (("prefill", 16), ("decode", 1)):
        counts = []
        for layers in (2, 4):
            model = _model("xattn", layers=layers)
            cache = make_cache(model, 64)
            model(**_inputs(1, 32, False), **{CACHE: cache})
            text = torch.randint(3, 128, (1, tokens))
            ran = operations(lambda model=model, cache=cache, text=text: model(text, **{CACHE: cache})[0])
            counts.append(Counter(ran.materialising()))
        layer = {name: count / 2 for name, count in (counts[1] - counts[0]).items()}
        others = sum(layer.values()) - layer.get("copy_", 0.0)
        measured = ", ".join(f"{name} {count:g}" for name, count in layer.items())
        bar = "the new key and value: copy_ 2"
        value = others + abs(layer.get("copy_", 0.0) - 2)
        what = f"copies a layer, {way}, float32, optimized, cache of make_cache"
        yield Row("huggingface", what, bar, measured, value, 0, "counted by a TorchDispatchMode", layer)


def _compiled(steps: int) -> Row:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = _model("xattn", layers=2)
    cache = transformers.StaticCache(model.config, 8 + steps)
    text = torch.randint(3, 128, (1, 8 + steps))
    model(text[:, :8], **{CACHE: cache})
    step = torch.compile(model, backend="eager")
    for i in range(8, 8 + steps):
        step(text[:, i : i + 1], **{CACHE: cache})
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    what = f"graphs of a compiled decode step over a static cache, {steps} tokens"
    return Row("huggingface", what, "1", str(graphs), graphs, 1, "torch._dynamo's counters", {"graphs": graphs})
