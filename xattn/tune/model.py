"""The calls of a model, out of its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A file is no config.json of a model with attention. The message says what is wrong with it."""


def calls_of(path: Path, batches: Sequence[int], lengths: Sequence[int], train: bool) -> list[str]:
    """In words, for each batch and length: the prompt, and one token over a cache of that length; with `train`, forward
    and backward instead. For each kind of layer that the model has: with its sliding window, and without.

    path: config.json, or the folder that has it. Raises ConfigError.
    """
    config = _read(path / "config.json" if path.is_dir() else path)
    heads = _heads(config)
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16").removeprefix("torch.")
    softcap = config.get("attn_logit_softcapping")
    options = ["causal=true", *([] if softcap is None else [f"softcap={float(softcap)}"])]
    found: list[str] = []
    for batch in batches:
        for length in lengths:
            for window in _windows(config, length):
                banded = [*options, *([] if window is None else [f"window={window - 1},0"])]
                found.append(_call(heads, dtype, batch, length, length, banded, train))
                if not train:  # a layer with a window looks at its last keys alone, and needs no diagonal
                    keys = length if window is None else min(window, length)
                    found.append(_call(heads, dtype, batch, 1, keys, options[1:], train))
    return list(dict.fromkeys(found))


def _call(
    heads: tuple[int, int, int, int], dtype: str, batch: int, q: int, k: int, options: Sequence[str], grad: bool
) -> str:
    nheads, nheads_k, headdim, headdim_v = heads
    kind = f"{dtype}:grad" if grad else dtype
    tensors = (
        f"q={batch},{q},{nheads},{headdim}:{kind}",
        f"k={batch},{k},{nheads_k},{headdim}:{kind}",
        f"v={batch},{k},{nheads_k},{headdim_v}:{kind}",
    )
    return " ".join(("attention", *tensors, *options))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: is no config.json of a model")
    # A model of text and images has the one of its text inside.
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """nheads, nheads_k, headdim, headdim_v."""
    nheads = _size(config, "num_attention_heads", "n_head")
    nheads_k = _size(config, "num_key_value_heads", default=nheads)
    if "qk_rope_head_dim" in config:  # latent attention before absorption
        headdim = _size(config, "qk_nope_head_dim") + _size(config, "qk_rope_head_dim")
        return nheads, nheads_k, headdim, _size(config, "v_head_dim")
    headdim = config.get("head_dim") or _size(config, "hidden_size", "n_embd") // nheads
    headdim = _size({"head_dim": headdim}, "head_dim")
    return nheads, nheads_k, headdim, headdim


def _size(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    found = next((config[name] for name in names if config.get(name) is not None), default)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ConfigError(f"{' or '.join(names)} of the config is {found!r:.40}, want a whole number >= 1")
    return found


def _windows(config: Mapping[str, Any], length: int) -> list[int | None]:
    """The windows that layers of a model have at a length; None is a layer without one."""
    window, layers = config.get("sliding_window"), config.get("layer_types")
    if not isinstance(window, int) or not 0 < window < length or not config.get("use_sliding_window", True):
        return [None]
    if not isinstance(layers, list):  # every layer has it
        return [window]
    has = ["sliding_attention" in layers, any(kind != "sliding_attention" for kind in layers)]
    return [each for each, there in zip((window, None), has, strict=True) if there]
