"""The table of cases: legal by the contract, complete by the list of what must be covered, and wrong rows refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import msgspec
import numpy as np
import pytest
import torch
from support import extended
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.levels import LEVELS
from xattn_conformance.ops.attention import rowwise
from xattn_conformance.ops.attention import table as tables
from xattn_conformance.ops.attention.cases import build, knobs, load
from xattn_conformance.ops.attention.inputs import make
from xattn_conformance.ops.attention.op import AttentionOp
from xattn_conformance.ops.attention.options import hides
from xattn_conformance.ops.attention.recipes import RECIPES
from xattn_conformance.ops.attention.visibility import hidden_slots

import xattn

# Sizes, options and families are the same in every dtype.
CASES = [case for case in load() if case.dtype == "bfloat16"]
FORWARD = [case for case in CASES if not case.grads]
KNOBS = [knob for knob in knobs() if knob.on.dtype == "bfloat16"]
FEATURES = xattn.AttentionRequest.vocabulary.feature_names
NOTHING: xattn.Capabilities[str] = xattn.Capabilities("cpu", frozenset({torch.bfloat16}), frozenset(), "made up")
SIDES = {0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129}


def test_ids_are_unique_and_the_same_in_every_dtype() -> None:
    ids = [case.id for case in (*load(), *(knob.on for knob in knobs()))]
    assert len(set(ids)) == len(ids)
    by_dtype = [{case.id.replace(f"/{dtype}/", "/") for case in load() if case.dtype == dtype} for dtype in DTYPES]
    assert by_dtype[0] == by_dtype[1] == by_dtype[2]


def test_ids_are_those_of_reports() -> None:
    ids = {case.id for case in CASES}
    assert "attention/plain/bfloat16/b2-q65-k65-h3-g3-d64-v64/normal" in ids
    assert "attention/causal+window=65:3+top_left+lse/bfloat16/b1-q129-k65-h2-g2-d32-v32/needle" in ids
    assert "attention/sinks=log+lse/bfloat16/b2-q33-k129-h4-g2-d64-v64/normal" in ids
    assert "attention/grad.qkv.sinks:softcap=2+sinks=normal+lse/bfloat16/b2-q33-k65-h4-g4-d32-v32/normal" in ids


def test_a_case_survives_its_way_through_a_report() -> None:
    for case in CASES:
        assert msgspec.json.decode(msgspec.json.encode(case), type=Case) == case


@pytest.mark.parametrize("level", [LEVELS[0], *extended(*LEVELS[1:])])
def test_cases_are_legal_and_their_features_are_what_the_core_sees(level: str) -> None:
    op = AttentionOp()
    for case in (*(case for case in CASES if case.level == level), *(knob.on for knob in KNOBS)):
        if case.level != level:
            continue
        # Poison is no argument of the call: the core must accept it as it is.
        call = op.call(case, make(case), "cpu")
        with torch.set_grad_enabled(bool(case.grads)):
            request = xattn.explain(**call.arguments).request
        assert isinstance(request, xattn.AttentionRequest)
        needed = {reason.code for reason in NOTHING.reasons(request)} & set(FEATURES)
        assert needed == set(case.features) & set(FEATURES), case.id
        assert ("scale" in case.features) == (request.scale is not None), case.id
        assert ("grad" in case.features) == request.any_grad, case.id
        assert (case.features == ("plain",)) == (not needed and request.scale is None and not request.any_grad)


def test_families_have_what_they_are_about() -> None:
    # By the slow oracle's visibility, on the cases that are small enough for it.
    seen = Counter[str]()
    for case in CASES:
        if case.family not in ("poison", "dead", "probe") or max(case.shape.values()) > 65:
            continue
        problem = make(case)
        seen[case.family] += 1
        if case.family == "poison":
            assert rowwise.hidden(problem).any(), case.id
        elif case.family == "dead":
            assert not rowwise.visible(problem).any(axis=3).all(), case.id
        else:
            assert rowwise.visible(problem)[..., 0].all(), case.id
    assert min(seen[family] for family in ("poison", "dead", "probe")) >= 4


def test_what_hides_keys_is_known_from_the_options() -> None:
    # For bands and lengths exactly; a mask or a bias may hide a key by chance.
    found = Counter[bool]()
    for case in CASES:
        if "mask" in case.options or "bias" in case.options or min(case.shape.values()) == 0:
            continue
        hidden = bool(hidden_slots(make(case)).any())
        assert hides(case.options, case.shape) == hidden, case.id
        found[hidden] += 1
    assert min(found.values()) > 50


def test_families_and_recipes_are_those_of_the_inputs() -> None:
    table = tables.table()
    assert {case.family for case in CASES} == set(table.families)
    assert {name: set(recipes) for name, recipes in table.recipe.items()} == {
        name: set(known) for name, (_, known) in RECIPES.items()
    }
    for name, recipes in table.recipe.items():
        assert {case.options[name] for case in CASES if name in case.options} == set(recipes), name


def test_sizes() -> None:
    for size in (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257, 1000, 4096):
        for causal in (False, True):
            square = [case for case in FORWARD if case.shape["seqlen_q"] == case.shape["seqlen_k"] == size]
            assert any(case.options.get("causal", False) == causal for case in square), size
    assert {8, 13, 40, 64, 72, 80, 96, 127, 128, 192, 256} <= {case.shape["headdim"] for case in FORWARD}
    for cases in (FORWARD, [case for case in CASES if case.grads]):
        groups = {case.shape["nheads"] // case.shape["nheads_k"] for case in cases}
        assert {1, 2, 3, 4, 8} <= groups
        assert any(case.shape["nheads_k"] == 1 < case.shape["nheads"] for case in cases)
        assert any(case.shape["headdim_v"] < case.shape["headdim"] for case in cases)
        assert any(case.shape["headdim_v"] > case.shape["headdim"] for case in cases)
        for name in ("batch", "seqlen_q", "seqlen_k"):
            assert any(case.shape[name] == 0 for case in cases), name
    for size in (257, 384):
        assert any(case.shape["seqlen_q"] == size and case.grads for case in CASES)
    # Where heads and queries are as many, or there is one head, their order does not show.
    for case in CASES:
        if case.shape["nheads"] == case.shape["nheads_k"] and case.shape["seqlen_q"] > 1:
            assert 1 < case.shape["nheads"] != case.shape["seqlen_q"], case.id


@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@pytest.mark.parametrize("longer", ["seqlen_q", "seqlen_k"])
def test_both_alignments_both_ways(align: str, longer: str) -> None:
    shorter = "seqlen_k" if longer == "seqlen_q" else "seqlen_q"
    for option in ("causal", "window", "alibi_slopes"):
        fitting = [case for case in FORWARD if option in case.options and align in case.features]
        assert any(case.shape[longer] > case.shape[shorter] > 0 for case in fitting), option


def test_windows() -> None:
    windows = {tuple(case.options["window"]) for case in FORWARD if "window" in case.options}
    inside = {
        (n, side)
        for case in FORWARD
        for n, side in enumerate(case.options.get("window", ()))
        if side is not None and side < max(case.shape["seqlen_k"], case.shape["seqlen_q"])
    }
    assert inside >= {(n, side) for n in (0, 1) for side in SIDES}
    assert {(None, None), (0, None), (None, 0), (0, 0)} <= windows
    decode = [case for case in FORWARD if case.shape["seqlen_q"] == 1 and "window" in case.options]
    assert {case.family for case in decode} >= {"needle", "poison"}
    for grads in (False, True):
        fitting = [case for case in CASES if bool(case.grads) == grads]
        assert any("window" in case.options and "gqa" in case.features for case in fitting)


PAIRED = ["causal", "window", "softcap", "sinks", "alibi_slopes", "bias", "mask", "seqlens_k", "gqa", "headdim_v"]


@pytest.mark.parametrize("pair", [*combinations([*PAIRED, "top_left", "scale"], 2)], ids="-".join)
def test_every_pair_of_features(pair: tuple[str, str]) -> None:
    assert any(set(pair) <= set(case.features) and case.level != "full" for case in FORWARD)
    if set(pair) <= set(PAIRED):
        assert any(set(pair) <= set(case.features) and case.grads for case in CASES)


@pytest.mark.parametrize("feature", [*PAIRED, "scale", "deterministic"])
def test_every_feature_alone_in_gradients(feature: str) -> None:
    around = {"grad", "return_lse", "bottom_right", "gqa"}
    alone = [case for case in CASES if case.grads and set(case.features) - around == {feature} - around]
    assert alone
    for name in ("bias", "sinks"):
        if feature == name:
            # As a parameter, and as a constant beside q, k and v.
            assert {name in case.grads for case in alone} == {True, False}
    if feature != "deterministic":
        assert {"lse" in case.grads for case in alone} == {True, False}


def test_a_backend_without_lse_has_core_cases() -> None:
    core = [case for case in FORWARD if case.level == "core" and "return_lse" not in case.features]
    assert len(core) >= 20
    assert any(case.family == "probe" for case in core)


def test_variations() -> None:
    for name in ("repeat", "batch", "strides", "padding", "poison"):
        varied = [case for case in CASES if name in case.variations]
        assert len(varied) >= 8, name
        assert name != "poison" or all(case.family == "poison" for case in varied)
    assert all("repeat" in case.variations for case in CASES if case.options.get("deterministic"))
    assert any(case.grads and "repeat" in case.variations for case in CASES)


def test_knobs_change_the_answer() -> None:
    # By the slow oracle; dropout is nothing that it knows.
    assert {knob.feature for knob in KNOBS} == {
        *PAIRED[:-2],
        "top_left",
        "offset",
        "scale",
        "dropout_p",
    }
    for knob in KNOBS:
        on = make(knob.on)
        off = replace(on, **knob.off)
        assert {field for field in knob.off if getattr(on, field) is not getattr(off, field)} == set(knob.off)
        if knob.feature != "dropout_p":
            assert np.abs(rowwise.forward(on)[0] - rowwise.forward(off)[0]).max() > 0.1, knob.name


GROUP = """
[families]
normal = ""
poison = ""
onehot = ""
probe = ""
[recipe.sinks]
log = ""
[recipe.mask]
[recipe.bias]
[recipe.seqlens_k]
[recipe.alibi_slopes]
[feature]
causal = { options = { causal = true } }
[[pairs]]
why = "none"
level = "core"
of = []
shapes = ["b1 q3 k5 h2 d8"]
families = ["normal"]
[[knob]]
feature = "causal"
shape = "b1 q3 k5 h2 d8"
on = { causal = true }
off = { causal = false }
[[group]]
why = "made up"
level = "core"
shapes = ["b1 q3 k5 h2 d8"]
families = ["normal"]
options = { causal = true }
"""


def changed(old: str, new: str) -> str:
    """The last occurrence replaced: that in the group."""
    assert old in GROUP
    return new.join(GROUP.rsplit(old, 1))


def test_the_made_up_table_is_right() -> None:
    assert [case.id for case in build(tables.parse(GROUP))] == [
        f"attention/causal+lse/{dtype}/b1-q3-k5-h2-g2-d8-v8/normal" for dtype in DTYPES
    ]


OPTIONS = "options = { causal = true }\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GROUP + "rtol = 1.0", "unknown field `rtol`"),
        (GROUP + "variations = ['thrice']", "Invalid enum value 'thrice'"),
        (GROUP[:-20], "cases.toml"),
        (changed('level = "core"', 'level = "easy"'), "Invalid enum value 'easy'"),
        (changed(OPTIONS, "options = { is_causal = true }"), "unknown options is_causal"),
        (changed(OPTIONS, "options = { causal = 1 }"), "causal is 1, not true or false"),
        (changed(OPTIONS, 'options = { sinks = "deep" }'), "sinks has no recipe 'deep'"),
        (changed(OPTIONS, 'options = { window = "3" }'), "the window '3' is not"),
        (changed(OPTIONS, 'options = { window = "-1:0" }'), "the window '-1:0' is not"),
        (changed(OPTIONS, "options = { softcap = 0.0 }"), "out of range"),
        (changed(OPTIONS, "options = { softcap = 2 }"), "softcap is 2, not a float"),
        (changed(OPTIONS, 'options = { align = "left" }'), "align is 'left'"),
        (changed(OPTIONS, "options = { dropout_p = 0.5 }"), "dropout is judged on the family onehot"),
        (changed('["normal"]', '["gauss"]'), "no family 'gauss'"),
        (changed('["normal"]', '["poison"]'), "no key to be put in"),
        (changed("d8", "d8 v4").replace('["normal"]\nop', '["onehot"]\nop'), "onehot needs seqlen_k <= headdim_v"),
        (changed("d8", "d8 v1").replace('["normal"]\nop', '["probe"]\nop'), "probe needs key 0"),
        (changed("h2 d8", "h3 g2 d8"), "nheads is no multiple of nheads_k"),
        (changed("h2 d8", "d8"), "lacks h"),
        (changed("h2 d8", "h2 d8 h4"), "'h4' in the shape"),
        (changed("h2 d8", "h2 d8 x4"), "'x4' in the shape"),
        (changed("d8", "d0"), "a headdim is 0"),
        (changed('"b1 q3 k5 h2 d8"', '"b1 q3 k5 h2 d8", "b1 q3 k5 h2 d8"'), "is there twice"),
        (GROUP + 'grads = ["qkv sinks"]', "gradients of sinks, which the call does not have"),
        (GROUP + 'grads = ["dq"]', "unknown gradients dq"),
        (changed('["normal"]', '["normal", "onehot"]') + 'in_turn = ["families"]', "more families than cases"),
        (GROUP.replace("of = []", 'of = ["causal", "speed"]'), "pairs of unknown features speed"),
    ],
)
def test_wrong_tables_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^cases\.toml: ") as caught:
        build(tables.parse(text))
    assert message in str(caught.value)
