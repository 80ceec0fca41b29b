"""A model of Llama's shape by each implementation that is here: `python benchmarks/llama.py`, above all on a GPU.

8 layers, 32 heads on 8 of keys and values, headdim 128, batch 1: a decode step over a cache of 4,096 tokens, and the
prefill of 4,096. The weights are random. `flash_attention_2` and `flash_attention_3` run where transformers finds them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import transformers
from huggingface import CACHE
from torch import Tensor

from xattn.errors import InvalidArgumentError
from xattn.integrations.transformers import make_cache, optimize, register
from xattn.measure import Timing, alternate

CONTEXT = 4096
SIZES = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 2 * CONTEXT,
}  # fmt: skip
STOCK = ("sdpa", "flash_attention_2", "flash_attention_3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    parser.add_argument("--dtype", default="bfloat16", help="[%(default)s]")
    parser.add_argument("--layers", type=int, default=8, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=20.0, help="about, of each table [%(default)s]")
    arguments = parser.parse_args()
    register()
    transformers.logging.set_verbosity_error()
    dtype = getattr(torch, arguments.dtype)
    models = _models(arguments.layers, dtype, arguments.device)
    text = torch.randint(3, SIZES["vocab_size"], (1, CONTEXT), device=arguments.device)
    with torch.no_grad():
        steps: dict[str, Callable[[], Tensor]] = {}
        for name, model in models.items():
            steps[name] = _step(model, transformers.DynamicCache(config=model.config), text)
        for name, used in (("sdpa", "sdpa, static cache"), ("xattn", "xattn, make_cache")):
            model = models[name]
            own = name == "xattn"
            cache = make_cache(model, CONTEXT + 1) if own else transformers.StaticCache(model.config, CONTEXT + 1)
            steps[used] = _step(model, cache, text)
        prefills = {name: _prefill(model, text) for name, model in models.items()}
        for what, candidates in (("a decode step", steps), ("prefill", prefills)):
            timing = alternate(candidates, device=arguments.device, mode="eager", seconds=arguments.seconds)
            _print(f"{what}, {CONTEXT:,} tokens, {arguments.layers} layers, batch 1, {arguments.dtype}", timing)


def _models(layers: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """By name, with the same weights. "xattn" is optimized; what cannot be made here is left out, and said."""
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=layers, pad_token_id=0)
    made: dict[str, Any] = {}
    for name in (*STOCK, "xattn"):
        try:
            with torch.device(device):
                kind = transformers.LlamaForCausalLM
                model = kind._from_config(config, attn_implementation=name, dtype=dtype).eval()
        except (ImportError, ValueError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            print(f"{name}: not here: {str(error).splitlines()[0]}")
            continue
        if made:
            model.load_state_dict(made["sdpa"].state_dict(), assign=True)  # one copy in memory
        if name == "xattn":
            optimize(model)
        made[name] = model
    return made


def _step(model: Any, cache: Any, text: Tensor) -> Callable[[], Tensor]:
    model(text, logits_to_keep=1, **{CACHE: cache})

    def step() -> Tensor:
        out: Tensor = model(text[:, :1], **{CACHE: cache})[0]
        cache.crop(-1)  # the same step each time
        return out

    return step


def _prefill(model: Any, text: Tensor) -> Callable[[], Tensor]:
    return lambda: model(text, use_cache=False, logits_to_keep=1)[0]


def _print(what: str, timing: Timing) -> None:
    print(f"\n{what}; {timing.method}")
    for name in timing.samples:
        low, high = (each / 1e3 for each in timing.spread(name))
        ratio = timing.ratio("sdpa", name)
        print(f"{name:>20}: {timing.p50(name) / 1e3:8.2f} ms ({low:.2f} to {high:.2f}), {ratio:.2f}x as fast as sdpa")


if __name__ == "__main__":
    main()
