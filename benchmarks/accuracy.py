"""What quantised keys and values cost in exactness: of Gaussian numbers, and of a model of real weights.

    python benchmarks/accuracy.py

The first table has the rms error of what is stored, over the rms of the numbers. The second has the sentence embeddings
of all-MiniLM-L6-v2, whose keys and values go through a quantised cache in every layer: their rms error, and the largest
change of the cosine of two sentences.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import xattn
from xattn.cache import PagedKVCache, StaticKVCache
from xattn.cache.sizes import ScaleOf
from xattn.plugin.quantised import QMAX, as_bytes, dequantised, scale_at

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
STORAGES = {"int8": torch.int8, "e4m3fn": torch.float8_e4m3fn, "int4": torch.uint8}


def gaussian(dtype: torch.dtype, scale_of: Any) -> float:
    """8,192 tokens of 8 heads of 128. A scale that the caller sets is the least that cuts nothing off."""
    cache = PagedKVCache(512, 16, 8, 128, dtype=dtype, scale_of=scale_of)
    x = torch.randn(8192, 8, 128, generator=torch.Generator().manual_seed(0))
    scale = cache.scales(0)["k_scale"]
    largest = x.view(512, 16, 8, 128).abs().amax((1, 3))
    scale.copy_({0: largest.max(), 1: largest.amax(0), 2: largest}.get(scale.dim(), torch.ones(()) * QMAX[dtype]))
    scale.div_(QMAX[dtype])
    slots = torch.arange(8192)
    cache.write(0, x, x, slots)
    block, place = slots // 16, slots % 16
    stored = as_bytes(cache.k[0])[block, place].view(dtype)
    error = dequantised(stored, scale_at(scale, block, place)) - x
    return float(error.square().mean().sqrt() / x.square().mean().sqrt())


def through(dtype: torch.dtype) -> Any:
    """Attention of transformers over a cache of that dtype, rows without padding."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any) -> tuple[Tensor, None]:
        batch, nheads, seqlen, headdim = q.shape
        cache = StaticKVCache(batch, seqlen, k.shape[1], headdim, dtype=dtype)
        cache.append(k.transpose(1, 2), v.transpose(1, 2))
        packed = q.transpose(1, 2).reshape(batch * seqlen, nheads, headdim)
        out = xattn.paged_attention(packed, cache.k, cache.v, cache.paged(seqlen), causal=False, **cache.scales())
        return out.view(batch, seqlen, nheads, headdim), None

    return attend


def embeddings() -> dict[str, Tensor]:
    """(sentences, dimensions) of each storage, and of "float32"; a sentence at a time, so that there is no padding."""
    import minilm
    from transformers import AttentionInterface

    found = {}
    for name, dtype in {"float32": None, **STORAGES}.items():
        if dtype is not None:
            AttentionInterface.register(f"quantised-{name}", through(dtype))
        model = minilm.load("eager" if dtype is None else f"quantised-{name}")
        rows = [minilm.embed(model, minilm.tokenize([sentence])) for sentence in minilm.SENTENCES]
        found[name] = torch.cat(rows)
    return found


def main() -> None:
    print("| " + " | ".join(["rms error of Gaussian numbers", *get_args(ScaleOf)]) + " |")
    for name, dtype in STORAGES.items():
        print("| " + " | ".join([name, *(f"{gaussian(dtype, of):.2%}" for of in get_args(ScaleOf))]) + " |")
    found = embeddings()
    exact = found.pop("float32")
    print("\n| all-MiniLM-L6-v2 | rms error of embeddings | largest change of a cosine |")
    for name, rows in found.items():
        error = (rows - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        cosines = [torch.nn.functional.normalize(x) for x in (rows, exact)]
        change = (cosines[0] @ cosines[0].t() - cosines[1] @ cosines[1].t()).abs().max()
        print(f"| {name} | {error:.2%} | {change:.4f} |")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
