"""Which kernel aiter picks: the plugin's prediction and the stand-in's, each against the table that was read from
aiter's sources and probed, and against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from xattn_elsewhere.aiter.standin import ARCHS, VERSION, routes
from xattn_rocm.aiter.attention.routing import Passed, backward, forward
from xattn_rocm.installation import Installation

INSTALLED = Installation(Path(), VERSION, "attention")

# A call in the columns' words, and the forward kernel of each arch.
COLUMNS = ("gfx942", "gfx950", "gfx90a", "gfx1250", "gfx1201")
DENSE: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("bf16 D128 causal Sq256", {"causal": True}, ("v3", "v3", "ck", "sink_asm", "ck")),
    ("same, Sq128", {"causal": True, "seqlen_q": 128}, ("ck", "ck", "ck", "sink_asm", "ck")),
    ("same, Sq129", {"causal": True, "seqlen_q": 129}, ("v3", "v3", "ck", "sink_asm", "ck")),
    ("fp16", {"dtype": torch.float16}, ("ck", "ck", "ck", "ck", "ck")),
    (
        "bf16 D64 decode Sk8192",
        {"headdim": 64, "headdim_v": 64, "seqlen_q": 1, "seqlen_k": 8192},
        ("splitk", "ck", "ck", "ck", "ck"),
    ),
    ("D64 causal, Sq > Sk", {"headdim": 64, "headdim_v": 64, "causal": True, "seqlen_k": 200}, ("ck",) * 5),
    ("bf16 192/128", {"headdim": 192}, ("v3", "opus", "ck", "ck", "ck")),
    ("bf16 192/128 with lse", {"headdim": 192, "return_lse": True}, ("v3", "v3", "ck", "ck", "ck")),
    ("D128 + sinks", {"sinks": True}, ("v3", "v3", "ck", "ck", "ck")),
    ("D64 + sinks", {"headdim": 64, "headdim_v": 64, "sinks": True}, ("ck", "ck", "ck", "sink_asm", "ck")),
    ("window (64, 0)", {"window": (64, 0)}, ("ck",) * 5),
    ("window (-1, 0), not causal", {"window": (-1, 0)}, ("v3", "v3", "ck", "sink_asm", "ck")),
    ("window (0, 0)", {"window": (0, 0)}, ("v3", "v3", "ck", "sink_asm", "ck")),
    ("left = Sk - 1, causal", {"window": (255, 0), "causal": True}, ("ck",) * 5),
    ("left = Sk - 1", {"window": (255, -1)}, ("ck",) * 5),
    ("left = Sk is dropped", {"window": (256, -1)}, ("v3", "v3", "ck", "sink_asm", "ck")),
    ("right = 1 beside causal", {"window": (0, 1), "causal": True}, ("ck",) * 5),
    ("bias", {"bias": True}, ("ck",) * 5),
    ("alibi", {"alibi": True}, ("ck",) * 5),
    ("dropout", {"dropout": True}, ("ck",) * 5),
    ("headdim 124 is padded to 128", {"headdim": 124, "headdim_v": 122}, ("v3", "v3", "ck", "sink_asm", "ck")),
    ("headdim 120 is not", {"headdim": 120, "headdim_v": 120}, ("ck",) * 5),
    ("softcap: the varlen function", {"softcap": True}, ("ck",) * 5),
    ("softcap 192/128", {"softcap": True, "headdim": 192}, ("ck", "ck", "ck", "flydsl", "ck")),
    ("softcap 192/128 and a window", {"softcap": True, "headdim": 192, "window": (255, -1)}, ("ck",) * 5),
)

# The same for the backward of the dense function, on gfx942 and gfx950; everywhere else it is CK.
BACKWARD: tuple[tuple[str, dict[str, Any], tuple[str, str]], ...] = (
    ("bf16 D128 causal", {"causal": True}, ("v3", "v3")),
    ("fp16 D128", {"dtype": torch.float16}, ("v3", "v3")),
    ("deterministic", {"deterministic": True, "seqlen_k": 257}, ("ck", "ck")),
    ("deterministic, one block of keys", {"deterministic": True, "seqlen_k": 256}, ("ck", "v3")),
    ("Sq16", {"seqlen_q": 16}, ("ck", "ck")),
    ("Sq17", {"seqlen_q": 17}, ("v3", "v3")),
    ("D64", {"headdim": 64, "headdim_v": 64}, ("v3", "ck")),
    ("D56", {"headdim": 56, "headdim_v": 56}, ("ck", "ck")),
    ("D192", {"headdim": 192, "headdim_v": 192}, ("v3", "ck")),
    ("D200", {"headdim": 200, "headdim_v": 200}, ("ck", "ck")),
    ("192/128", {"headdim": 192}, ("ck", "v3")),
    ("128/64", {"headdim_v": 64}, ("ck", "v3")),
    ("window, D128", {"window": (64, 0)}, ("v3", "ck")),
    ("window, D192", {"window": (64, 0), "headdim": 192, "headdim_v": 192}, ("ck", "ck")),
    ("window, D64", {"window": (64, 0), "headdim": 64, "headdim_v": 64}, ("ck", "ck")),
    ("window (0, 0)", {"window": (0, 0)}, ("ck", "v3")),
    ("window (0, 0), D64", {"window": (0, 0), "headdim": 64, "headdim_v": 64}, ("v3", "ck")),
    ("bias", {"bias": True}, ("ck", "ck")),
    ("alibi", {"alibi": True}, ("ck", "ck")),
    ("dropout", {"dropout": True}, ("ck", "ck")),
)

CALL: dict[str, Any] = {
    "dtype": torch.bfloat16,
    "seqlen_q": 256,
    "seqlen_k": 256,
    "nheads": 4,
    "nheads_k": 2,
    "headdim": 128,
    "headdim_v": 128,
}


def standin(call: Passed, arch: str) -> routes.Given:
    """The call as the stand-in's gates see it: tensors, of which only shapes are read."""

    def tensor(seqlen: int, heads: int, width: int) -> Tensor:
        return torch.empty(1, seqlen, heads, width + -width % 8, dtype=call.dtype, device="meta")

    some = torch.empty(0)
    return routes.Given(
        arch=arch,
        q=tensor(call.seqlen_q, call.nheads, call.headdim),
        k=tensor(call.seqlen_k, call.nheads_k, call.headdim),
        v=tensor(call.seqlen_k, call.nheads_k, call.headdim_v),
        seqlen_q=call.seqlen_q,
        seqlen_k=call.seqlen_k,
        causal=call.causal,
        left=call.window[0],
        right=call.window[1],
        sink_tokens=0,
        alibi=some if call.alibi else None,
        bias=some if call.bias else None,
        sink=some if call.sinks else None,
        dropout_p=0.1 if call.dropout else 0.0,
        return_lse=call.return_lse,
        deterministic=call.deterministic,
        unpadded=(call.headdim, call.headdim_v),
        softcap=2.0 if call.softcap else 0.0,
    )


def standins_route(call: Passed, arch: str) -> str:
    seen = standin(call, arch)
    return routes.varlen(seen) if call.varlen else routes.dense(seen)


def rows(table: Any) -> list[Any]:
    return [pytest.param(changed, wanted, id=name) for name, changed, wanted in table]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AITER_ENABLE_FMHA_OPUS", "AITER_DISABLE_FMHA_OPUS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("changed", "wanted"), rows(DENSE))
def test_the_plugin_has_the_forward_table(changed: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    call = Passed(**{**CALL, **changed})
    assert tuple(forward(call, arch, INSTALLED, {}) for arch in COLUMNS) == wanted


@pytest.mark.parametrize(("changed", "wanted"), rows(DENSE))
def test_the_standin_has_the_forward_table(changed: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    call = Passed(**{**CALL, **changed})
    assert tuple(standins_route(call, arch) for arch in COLUMNS) == wanted


@pytest.mark.parametrize(("changed", "wanted"), rows(BACKWARD))
def test_the_plugin_has_the_backward_table(changed: Mapping[str, Any], wanted: tuple[str, str]) -> None:
    call = Passed(**{**CALL, **changed})
    found = tuple(backward(call, arch) for arch in COLUMNS)
    assert found == (*wanted, "ck", "ck", "ck")


@pytest.mark.parametrize(("changed", "wanted"), rows(BACKWARD))
def test_the_standin_has_the_backward_table(changed: Mapping[str, Any], wanted: tuple[str, str]) -> None:
    call = Passed(**{**CALL, **changed})
    found = tuple(routes.backward(standin(call, arch)) for arch in COLUMNS)
    assert found == (*wanted, "ck", "ck", "ck")


def test_opus_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    call, wide = Passed(**CALL), Passed(**{**CALL, "headdim": 192})
    for each, environment, wanted in (
        (call, {"AITER_ENABLE_FMHA_OPUS": "1"}, "opus"),
        (call, {"AITER_ENABLE_FMHA_OPUS": "0"}, "v3"),
        (wide, {"AITER_DISABLE_FMHA_OPUS": "1"}, "v3"),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert forward(each, "gfx950", INSTALLED, environment) == wanted
            assert standins_route(each, "gfx950") == wanted


def test_old_releases_send_headdim_128_to_asm_on_every_arch() -> None:
    old = Installation(Path(), "0.1.15", "attention")
    assert forward(Passed(**CALL), "gfx90a", old, {}) == "v3"
    assert forward(Passed(**CALL), "gfx90a", Installation(Path(), "0.1.16", "attention"), {}) == "ck"


def test_the_oldest_release_sends_a_softcap_to_asm() -> None:
    call = Passed(**{**CALL, "softcap": True})
    assert forward(call, "gfx942", Installation(Path(), None, "flat"), {}) == "v3"
    assert forward(call, "gfx942", Installation(Path(), "0.1.8", "flat"), {}) == "ck"


def test_the_oldest_release_has_asm_for_192_128_on_gfx950_alone() -> None:
    call = Passed(**{**CALL, "headdim": 192})
    oldest, next_one = (Installation(Path(), version, "flat") for version in ("0.1.7.post5", "0.1.8"))
    assert [forward(call, arch, oldest, {}) for arch in ("gfx942", "gfx950")] == ["ck", "v3"]
    assert [forward(call, arch, next_one, {}) for arch in ("gfx942", "gfx950")] == ["v3", "v3"]


sides = st.sampled_from((-1, -1, 0, 1, 16, 127, 128, 255, 256, 300))
widths = st.sampled_from((8, 40, 64, 65, 72, 96, 121, 128, 128, 160, 185, 192, 256))
flags = st.sampled_from((False, False, False, True))
calls = st.builds(
    Passed,
    dtype=st.sampled_from((torch.float16, torch.bfloat16)),
    seqlen_q=st.sampled_from((1, 16, 17, 128, 129, 256)),
    # The stand-in splits from two tiles of keys on, and aiter's heuristic is nobody's here.
    seqlen_k=st.sampled_from((128, 256, 257, 2048)),
    nheads=st.just(4),
    nheads_k=st.sampled_from((1, 2, 4)),
    headdim=widths,
    headdim_v=widths,
    causal=st.booleans(),
    window=st.tuples(sides, sides),
    alibi=flags,
    bias=flags,
    sinks=flags,
    softcap=flags,
    dropout=flags,
    return_lse=st.booleans(),
    deterministic=flags,
)


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(calls, st.sampled_from(ARCHS), st.booleans())
def test_plugin_and_standin_pick_the_same_kernels(call: Passed, arch: str, square: bool) -> None:
    if square:
        call = Passed(**{**vars(call), "headdim_v": call.headdim})
    assert forward(call, arch, INSTALLED, {}) == standins_route(call, arch)
    assume(not call.varlen)
    assert backward(call, arch) == routes.backward(standin(call, arch))
