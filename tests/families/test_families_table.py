"""The table of families: what it says, and what its judge would notice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from families.judge import Verdict, judge
from families.models import FAMILIES
from families.page import PAGE, page, same
from families.scenarios import SCENARIOS
from support import extended
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from xattn.integrations.transformers import register

BY_LABEL = {each.label: each for each in FAMILIES}
WAYS = {each.label: each for each in SCENARIOS}


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def test_the_page_has_every_family_and_every_way_and_no_fault() -> None:
    text = PAGE.read_text()
    empty: list[dict[str, Verdict]] = [{} for _ in FAMILIES]
    for line in page(empty).splitlines():
        if line.startswith("|"):
            begin = line.partition(" | - |")[0]
            assert begin in text, begin
    assert "Fault" not in text
    assert same(text, text.replace("With transformers ", "With transformers 1.0, "))
    assert not same(text, text.replace(" = |", " - |", 1))


def shown(family: str, way: str) -> str:
    """What the page says about a cell."""
    text = PAGE.read_text()
    (line,) = re.findall(rf"^\| {re.escape(family)}(?: \(.*?\))? \| (.*) \|$", text, re.M)
    cell: str = line.split(" | ")[[each.label for each in SCENARIOS].index(way)]
    if number := re.match(r"\[(\d+)\]", cell):
        (cell,) = re.findall(rf"^{number[1]}\. (.*)$", text, re.M)
    return cell


@pytest.mark.parametrize(
    "cell",
    [
        ("Llama", "own"),
        ("gpt-oss", "packed"),
        ("BLOOM", "forward"),
        ("Llama", "fp8"),
        ("Llama", "assisted"),
        ("gpt-oss", "look-up"),
        *extended(("Jamba", "packed"), ("Gemma 4, two layers share keys", "batched"), ("OPT", "compiled")),
    ],
)
def test_a_cell_is_what_is_found(cell: tuple[str, str]) -> None:
    family, way = cell
    found, said = judge(BY_LABEL[family], WAYS[way]), shown(family, way)
    assert said == "=" if found.kind == "equal" else said.endswith(found.why)


# What is lost is seen


@pytest.fixture
def losing() -> Iterator[Any]:
    """An implementation that loses arguments of attention, or changes those of the mask."""

    def register_losing(attention: dict[str, Any], mask: dict[str, Any]) -> str:
        attend, make_mask = AttentionInterface()["xattn"], AttentionMaskInterface()["xattn"]
        AttentionInterface.register("losing", lambda *tensors, **given: attend(*tensors, **{**given, **attention}))
        AttentionMaskInterface.register("losing", lambda **given: make_mask(**{**given, **mask}))
        return "losing"

    yield register_losing
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop("losing", None)


NO_WINDOW = {"mask_function": causal_mask_function}
NO_PADDING = {"attention_mask": None}
LOSSES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "softcap": ("Gemma 2", "forward", {"softcap": None}, {}),
    "sinks": ("gpt-oss", "forward", {"s_aux": None}, {}),
    "scale": ("Gemma 3", "forward", {"scaling": 0.5}, {}),
    "position bias": ("T5", "forward", {"position_bias": None}, {}),
    "window": ("Mistral", "forward", {}, NO_WINDOW),
    "window of a cache": ("Cohere 2", "own", {}, NO_WINDOW),
    "chunks": ("Llama 4, chunks in one layer", "dynamic", {}, NO_WINDOW),
    "scale of sound": ("Whisper", "forward", {"scaling": 0.1}, {}),
    "left padding": ("Qwen3", "left", {}, NO_PADDING),
    "padding of a cache": ("GPT-2", "static", {}, NO_PADDING),
    "padding of an encoder": ("ModernBERT", "right", {}, NO_PADDING),
    "padding, quantised": ("Llama", "fp8", {}, NO_PADDING),
    "padding in training": ("Phi-3", "training", {}, NO_PADDING),
    "sequences": ("Qwen2", "packed", {}, NO_WINDOW),
    "scale of images": ("SigLIP", "forward", {"scaling": 0.2}, {}),
}
# The others show the same of other families.
SHOWN = ["sinks", "padding, quantised", "sequences"]


@pytest.mark.parametrize("loss", SHOWN + extended(*(loss for loss in LOSSES if loss not in SHOWN)))
def test_the_judge_sees_what_is_lost(loss: str, losing: Any) -> None:
    family, way, attention, mask = LOSSES[loss]
    verdict = judge(BY_LABEL[family], WAYS[way], losing(attention, mask))
    assert verdict.kind == "fault", verdict
