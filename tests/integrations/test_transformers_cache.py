"""The cache of `make_cache`: the tokens of eager attention with transformers' own cache, and no copy of the past."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from integrations.beside_eager import TOLERANCE, make
from integrations.tiny_models import VERSION, padding, tokens
from integrations.tiny_models import make as make_family
from support import extended
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

import xattn
from xattn.integrations.transformers import make_cache

CACHE = "cache" if VERSION >= (5, 24) else "past_key_values"
GREEDY: dict[str, Any] = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "beams": {**GREEDY, "num_beams": 3},
    "prompt look-up": {**GREEDY, "prompt_lookup_num_tokens": 2},
}


def some(name: str, implementation: str) -> Any:
    return make_family(name, implementation) if name in ("gemma4", "llama4", "bart") else make(name, implementation)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", ["llama", "gpt_oss", *extended("mistral", "gemma2", "deepseek_v3", "gemma4", "llama4", "bart")]
)
def test_generates_what_eager_does(name: str, way: str) -> None:
    if way == "prompt look-up" and name != "llama" and VERSION < (5, 24):
        pytest.skip("there look-up decoding is for full attention alone")
    one = way == "prompt look-up"
    text, mask = (tokens()[:1], padding("none")[:1]) if one else (tokens(), padding("left"))
    model = some(name, "xattn")
    cache = make_cache(model, 20)
    got = model.generate(text, attention_mask=mask, **WAYS[way], **{CACHE: cache})
    expected = some(name, "eager").generate(text, attention_mask=mask, **WAYS[way])
    assert torch.equal(got, expected)
    assert cache.get_seq_length() >= (7 if name == "bart" else 19)


@pytest.mark.parametrize("chunks", [(12,), (1,) * 12, (3, 9), (9, 3), (2, 5, 1, 4)])
@torch.no_grad()
def test_chunks_of_any_size_equal_the_whole(chunks: tuple[int, ...]) -> None:
    """Windows of 4 keys: room for 8, which a chunk of 9 does not fit into."""
    model = make("gpt_oss", "xattn")
    for _ in range(2):
        cache = make_cache(model, 12)
        parts = [model(part, **{CACHE: cache})[0] for part in tokens().split(chunks, 1)]
        whole = make("gpt_oss", "eager")(tokens())[0]
        assert float((torch.cat(parts, 1) - whole).abs().max()) <= TOLERANCE
        cache.reset()
        assert cache.get_seq_length() == 0


# What is copied


class Written(TorchDispatchMode):
    """How many elements each operation that copies writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in {"copy_", "clone", "cat", "index_select", "index_copy_", "repeat_interleave", "_to_copy"}:
            self.elements[name] += out.numel()
        return out


def steps(cache: Any, count: int, layer: int = 0) -> tuple[Written, list[Tensor]]:
    new = torch.randn(1, 2, 1, 8)
    with Written() as written:
        seen = [cache.update(new, new, layer)[0] for _ in range(count)]
    return written, seen


@pytest.mark.parametrize("prefill", [1, 5])
def test_a_step_writes_its_own_keys_and_values_alone(prefill: int) -> None:
    model = make("llama", "xattn")
    cache = make_cache(model, 40)
    start = torch.randn(1, 2, prefill, 8)
    cache.update(start, start, 0)
    written, seen = steps(cache, 30)
    assert written.elements == {"copy_": 30 * 2 * 16}
    assert len({keys.data_ptr() for keys in seen}) == 1  # views that grow in place
    assert [keys.shape[2] for keys in seen] == list(range(prefill + 1, prefill + 31))
    stock = DynamicCache(config=model.config)
    stock.update(start, start, 0)
    assert steps(stock, 30)[0].elements["cat"] > 10 * 30 * 2 * 16  # what the count above would notice


def test_a_window_moves_one_key_a_token_on_average() -> None:
    cache = make_cache(make("mistral", "xattn"), 1000)
    _, seen = steps(cache, 4)
    written, seen = steps(cache, 500)
    assert {keys.shape[2] for keys in seen} == {4}
    own = 500 * 2 * 16
    assert own < written.elements.pop("copy_") <= 2 * own
    assert not written.elements


@torch.no_grad()
def test_a_step_of_a_model_copies_as_much_whatever_came_before() -> None:
    """From end to end, two layers: their keys and values, and the concatenations of `rotate_half`."""
    model = make("llama", "xattn")
    counts = []
    for prompt in (0, 1, 12):
        cache = make_cache(model, 20)
        if prompt:
            model(tokens()[:, :prompt], **{CACHE: cache})
        with Written() as written:
            model(tokens()[:, :1], **{CACHE: cache})
        counts.append(written.elements)
    assert counts[0] == counts[1] == counts[2]
    assert counts[0]["copy_"] == 2 * 2 * (2 * 2 * 8)


def test_one_heads_keys_lie_side_by_side_on_a_cpu() -> None:
    keys, _ = make_cache(make("llama", "xattn"), 20).update(*torch.randn(2, 2, 2, 5, 8), 0)
    assert keys.shape == (2, 2, 5, 8)
    assert keys.stride() == (2 * 20 * 8, 20 * 8, 8, 1)


# What cannot be done


@torch.no_grad()
def test_more_tokens_than_there_is_room_for() -> None:
    for name in ("llama", "mistral"):
        cache = make_cache(make(name, "xattn"), 10)
        with pytest.raises(xattn.InvalidArgumentError, match="max_seqlen: got 10, want at least 12"):
            make(name, "xattn")(tokens(), **{CACHE: cache})


def test_a_model_with_a_cache_of_its_own() -> None:
    config = transformers.XLNetConfig(vocab_size=9, d_model=8, n_layer=1, n_head=2, d_inner=8)
    with pytest.raises(xattn.InvalidArgumentError, match="model: got XLNetLMHeadModel, which has a cache of its own"):
        make_cache(transformers.XLNetLMHeadModel(config), 20)


def test_keys_that_want_a_gradient() -> None:
    model = make("llama", "xattn")
    with pytest.raises(xattn.InvalidArgumentError, match="a cache keeps no graph"):
        model(tokens(), **{CACHE: make_cache(model, 20)})


def test_tokens_that_a_window_has_forgotten() -> None:
    for remembered in (False, True):
        cache = make_cache(make("mistral", "xattn"), 20)
        layer: Any = cache.layers[0]
        if remembered:
            layer.activate_past_recording()
        steps(cache, 9)  # room for 8: the ninth moved the window of 3 to the front
        if remembered:
            layer.crop(-5)
            assert (layer.get_seq_length(), layer.keys.shape[2]) == (4, 4)
        else:
            layer.crop(-1)
            with pytest.raises(xattn.InvalidArgumentError, match="a crop by 5 of 8 tokens, 3 of them still there"):
                layer.crop(-5)
