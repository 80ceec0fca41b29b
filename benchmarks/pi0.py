"""A denoising loop of pi0's shape, by transformers' layers and by optimized ones: `python benchmarks/pi0.py`.

Two towers of 18 layers, 8 query heads on one of keys and values, headdim 256, batch 1: the first runs once over 816
tokens (three images and a text), the second 10 times over 51 (a state and 50 actions), which see each other and the
first tower's keys and values. The weights are random; the width of the second tower is pi0's. On a CPU the first tower
is as narrow as the second, which changes nothing of what is timed: one step of the second.

Beside it: of pi0 with aiter's attention, AMD reported 4.38 ms a step on an MI355X, and 3.73 (-14.8 %) once q, k and v
stayed in BSNH.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GemmaConfig, GemmaModel

from xattn.integrations.transformers import optimize, register
from xattn.measure import alternate

PREFIX, SUFFIX, STEPS = 816, 51, 10
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 8}
SECOND = {**HEADS, "hidden_size": 1024, "intermediate_size": 4096}
FIRST = {**HEADS, "hidden_size": 2048, "intermediate_size": 16384}
STOCK = ("eager", "sdpa", "xattn")


class Keys:
    """Keys and values of both towers, BSNH in memory, in transformers' API for caches. The second tower writes behind
    the first, over what the step before wrote."""

    def __init__(self, layers: int, dtype: torch.dtype, device: str) -> None:
        shape = (layers, 2, 1, PREFIX + SUFFIX, 1, 256)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        first, end = (0, PREFIX) if key.shape[2] == PREFIX else (PREFIX, PREFIX + SUFFIX)
        keys, values = self.memory[layer]
        keys[:, first:end] = key.transpose(1, 2)
        values[:, first:end] = value.transpose(1, 2)
        return keys[:, :end].transpose(1, 2), values[:, :end].transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    parser.add_argument("--dtype", default="bfloat16", help="[%(default)s]")
    parser.add_argument("--layers", type=int, default=18, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=60.0, help="about, in all [%(default)s]")
    arguments = parser.parse_args()
    device, dtype, layers = arguments.device, getattr(torch, arguments.dtype), arguments.layers
    register()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        keys = Keys(layers, dtype, device)
        first = _tower(FIRST if device == "cuda" else SECOND, layers, dtype, device)
        _run(first, torch.randn(1, PREFIX, first.config.hidden_size, dtype=dtype, device=device), 0, keys)
        second = _tower(SECOND, layers, dtype, device)
        noise = torch.randn(1, SUFFIX, SECOND["hidden_size"], dtype=dtype, device=device)
        runs: dict[str, Callable[[], Tensor]] = {}
        for name in (*STOCK, "optimized"):
            tower = _tower(SECOND, layers, dtype, device, "xattn" if name == "optimized" else name)
            tower.load_state_dict(second.state_dict())
            if name == "optimized":
                optimize(tower)
            runs[name] = partial(_denoised, tower, noise, keys)
        want = runs["eager"]()
        for name, run in runs.items():
            off = float((run() - want).abs().max() / want.abs().max())
            print(f"{name}: off by {off:.1e} of the largest value from eager")
        timing = alternate(runs, device=device, seconds=arguments.seconds)
    print(f"\n{layers} layers, {STEPS} steps, batch 1, {arguments.dtype}; {timing.method}")
    for name in runs:
        low, high = (each / 1e3 / STEPS for each in timing.spread(name))
        against = f"{timing.ratio('optimized', name) - 1:+.1%} optimized" if name != "optimized" else ""
        print(f"{name:>10}: {timing.p50(name) / 1e3 / STEPS:8.2f} ms a step ({low:.2f} to {high:.2f}) {against}")


def _tower(
    sizes: dict[str, int], layers: int, dtype: torch.dtype, device: str, implementation: str = "sdpa"
) -> GemmaModel:
    with torch.device(device):
        config = GemmaConfig(**sizes, num_hidden_layers=layers, pad_token_id=0)
        return GemmaModel._from_config(config, attn_implementation=implementation, dtype=dtype).eval()


def _run(tower: GemmaModel, hidden: Tensor, first: int, keys: Keys) -> Tensor:
    """All tokens see each other and what is in `keys`. first: the position of the first."""
    positions = torch.arange(first, first + hidden.shape[1], device=hidden.device)[None]
    rotation = tower.rotary_emb(hidden, positions)
    name = "cache" if "cache" in inspect.signature(tower.layers[0].forward).parameters else "past_key_values"
    for layer in tower.layers:
        given = {name: keys, "position_embeddings": rotation, "attention_mask": None, "is_causal": False}
        hidden = layer(hidden, **given)
    return tower.norm(hidden)


def _denoised(tower: GemmaModel, noise: Tensor, keys: Keys) -> Tensor:
    actions = noise
    for _ in range(STEPS):
        actions = actions - _run(tower, actions, PREFIX, keys) / STEPS
    return actions


if __name__ == "__main__":
    main()
