"""Calls of a run in words: as they were, and with values in their place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ops.every_op import every_sample, samples
from support import ROOT, extended, qkv, run_python

import xattn
from xattn.cache import FormattedCache
from xattn.cli.arguments import arguments_of, split
from xattn.cli.request import prepared_of
from xattn.dispatch import plans
from xattn.dispatch.op import Op
from xattn.dispatch.tables.kind import kind_of
from xattn.ops.table import OPS
from xattn.tune import record
from xattn.tune.fill import NoValuesError, filled


def again(words: str) -> tuple[Op, dict[str, Any]]:
    """The op and arguments that words stand for."""
    op, rest = split(words.split())
    return op, arguments_of(op, rest, torch.float16)


@every_sample
def test_words_stand_for_the_call_that_they_were_made_of(op: Op, name: str) -> None:
    sample = samples(op)[name]
    prepared = op.prepare(*sample.tensors, **sample.named)
    words = record.words_of(prepared)
    if "in a format" in name:  # no words stand for a FormattedCache
        assert words is None
        return
    assert words is not None
    found, arguments = again(words)
    assert found is op
    assert kind_of(prepared_of(op, arguments, "cpu", None).request) == kind_of(prepared.request)
    # And with values it can be called.
    torch.manual_seed(0)
    with torch.no_grad():
        op.function(**filled(arguments, torch.device("cpu")), backend="reference")


@pytest.mark.parametrize("grad", [True, *extended(False)])
def test_gradients_and_autocast_are_in_the_words(grad: bool) -> None:
    q, k, v = qkv()
    q.requires_grad_(grad)
    with torch.autocast("cpu", torch.bfloat16):
        words = record.words_of(OPS["attention"].prepare(q, k, v, causal=True, window=(None, 2), scale=0.5))
    mark = ":grad" if grad else ""
    assert words == (
        f"attention q=2,4,4,8:bfloat16{mark} k=2,4,4,8:bfloat16 v=2,4,4,8:bfloat16 causal=true window=none,2 scale=0.5"
    )
    with torch.no_grad():
        assert ":grad" not in str(record.words_of(OPS["attention"].prepare(q, k, v)))


def test_values_are_legal_and_bounded() -> None:
    _, arguments = again("varlen_attention q=10,2,8 k=9,2,8 v=9,2,8 cu_seqlens_q=4:int32 cu_seqlens_k=4:int32 "
                         "max_seqlen_q=2 max_seqlen_k=9 alibi_slopes=2:float32")  # fmt: skip
    made = filled(arguments, torch.device("cpu"))
    assert made["cu_seqlens_q"].tolist() == [0, 2, 4, 6]
    assert made["cu_seqlens_k"].tolist() == [0, 3, 6, 9]
    assert made["alibi_slopes"].tolist() == [2**-4, 2**-8]
    _, arguments = again("attention q=3,1,2,8 k=3,9,2,8 v=3,9,2,8 seqlens_k=3:int32")
    assert filled(arguments, torch.device("cpu"))["seqlens_k"].tolist() == [5, 7, 9]
    with pytest.raises(NoValuesError, match="dropout_p"):
        filled({"dropout_p": torch.empty(3, dtype=torch.int32, device="meta")}, torch.device("cpu"))


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XATTN_RECORD", str(tmp_path / "calls.txt"))
    record.start()
    yield tmp_path / "calls.txt"
    plans.on_plan = None


def test_each_kind_of_call_is_a_line_when_it_is_first_planned(recording: Path) -> None:
    q, k, v = qkv()
    for _ in range(3):
        xattn.attention(q, k, v)
    assert len(recording.read_text().splitlines()) == 1
    xattn.attention(*qkv(seqlen_q=3))  # of the same kind
    xattn.attention(q, k, v, softcap=2.0)
    xattn.plan(xattn.merge_attention, [q, q], [q[..., 0].transpose(1, 2).contiguous()] * 2)
    with recording.open() as lines:
        found = record.read(lines)
    assert [words.split()[0] for words in found] == ["attention", "attention", "merge_attention"]
    assert found[0] == "attention q=2,4,4,8:float32 k=2,4,4,8:float32 v=2,4,4,8:float32"


def test_a_call_of_caches_in_a_format_is_left_out_and_runs(recording: Path) -> None:
    q, plain = torch.randn(1, 2, 16), torch.randn(1, 4, 2, 16)
    k_cache, v_cache = (FormattedCache.made(plain, "vllm", of) for of in ("k", "v"))
    where = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([4], dtype=torch.int32)
    xattn.paged_attention(q, k_cache, v_cache, *where)
    assert not recording.exists()
    xattn.paged_attention(q, plain, plain, *where)
    assert recording.read_text().startswith("paged_attention ")


def test_what_is_read_back_is_each_call_once() -> None:
    lines = ["# a run\n", "\n", "attention q=1\n", "  attention q=1  # again\n", "b"]
    assert record.read(lines) == ["attention q=1", "b"]


def test_a_file_that_cannot_be_written_ends_the_recording_and_not_the_run(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XATTN_RECORD", str(recording / "below" / "nothing"))
    record.start()
    with pytest.warns(UserWarning, match="no more calls are recorded"):
        xattn.attention(*qkv())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xattn.attention(*qkv(batch=1))


@pytest.mark.extended
def test_the_variable_alone_records_a_run(tmp_path: Path) -> None:
    code = "import torch, xattn; q = torch.ones(1, 4, 2, 8); xattn.attention(q, q, q)"
    run_python(code, tmp_path, [ROOT, ROOT / "plugins"], XATTN_RECORD=str(tmp_path / "calls.txt"))
    assert (tmp_path / "calls.txt").read_text().startswith("attention q=1,4,2,8:float32 ")
