"""The calls of a model out of its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xattn.cli.arguments import arguments_of, split
from xattn.cli.request import prepared_of
from xattn.tune.model import ConfigError, calls_of

LLAMA = {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "torch_dtype": "bfloat16"}
GEMMA = {**LLAMA, "head_dim": 256, "sliding_window": 512, "attn_logit_softcapping": 50.0,
         "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip


def config(folder: Path, document: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(document))
    return path


def calls(folder: Path, document: Any, train: bool = False) -> list[str]:
    return calls_of(config(folder, document), [2], [1024], train)


def test_a_prompt_and_a_token_over_its_cache(tmp_path: Path) -> None:
    k = "k=2,1024,8,128:bfloat16 v=2,1024,8,128:bfloat16"
    assert calls(tmp_path, LLAMA) == [
        f"attention q=2,1024,32,128:bfloat16 {k} causal=true",
        f"attention q=2,1,32,128:bfloat16 {k}",
    ]
    assert calls_of(tmp_path, [2], [1024], False) == calls(tmp_path, LLAMA)  # its folder


def test_layers_with_a_window_and_without(tmp_path: Path) -> None:
    found = calls(tmp_path, GEMMA)
    assert [words.partition("v=")[2].partition(" ")[2] for words in found] == [
        "causal=true softcap=50.0 window=511,0", "softcap=50.0", "causal=true softcap=50.0", "softcap=50.0"
    ]  # fmt: skip
    assert "k=2,512,8,256" in found[1]
    assert len(calls_of(config(tmp_path, GEMMA), [2], [512], False)) == 2  # a window as wide as all there is
    everywhere = {name: value for name, value in GEMMA.items() if name != "layer_types"}
    assert len(calls(tmp_path, everywhere)) == 2
    assert len(calls(tmp_path, {**everywhere, "use_sliding_window": False})) == 2


def test_training_wants_gradients(tmp_path: Path) -> None:
    (words,) = calls(tmp_path, LLAMA, train=True)
    assert words.count(":grad") == 3


@pytest.mark.parametrize(
    ("document", "sizes"),
    [
        ({"n_head": 12, "n_embd": 768, "dtype": "float32"}, "q=2,1024,12,64:float32 k=2,1024,12,64"),
        ({"text_config": LLAMA, "hidden_size": 1}, "q=2,1024,32,128:bfloat16 k=2,1024,8,128"),
        (
            {**LLAMA, "num_key_value_heads": 32, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128},
            "q=2,1024,32,192:bfloat16 k=2,1024,32,192:bfloat16 v=2,1024,32,128",
        ),
    ],
)
def test_other_spellings(document: Any, sizes: str, tmp_path: Path) -> None:
    assert sizes in calls(tmp_path, document)[0]


def test_the_words_are_calls(tmp_path: Path) -> None:
    import torch

    for words in [*calls(tmp_path, GEMMA), *calls(tmp_path, GEMMA, train=True)]:
        op, rest = split(words.split())
        prepared_of(op, arguments_of(op, rest, torch.float32), "cpu", None)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "is no config.json"),
        ({}, "num_attention_heads or n_head of the config is None"),
        ({**LLAMA, "num_attention_heads": 0}, "want a whole number"),
        ({**LLAMA, "hidden_size": "wide"}, "hidden_size"),
        ({**LLAMA, "head_dim": -3}, "head_dim of the config is -3"),
    ],
)
def test_what_is_no_config_is_said(document: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        calls(tmp_path, document)


def test_what_is_no_json_or_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        calls_of(tmp_path, [1], [1], False)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        calls_of(tmp_path, [1], [1], False)
