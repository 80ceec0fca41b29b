"""`xattn tune`: from the command to the backend that auto takes."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.command_line import Run
from support import ROOT, backend_of, qkv
from tables.recorded import kernel, plugins
from typer.testing import Result

import xattn
from xattn.cli.tune import described, grid
from xattn.testing import fresh
from xattn.tune.measuring import measure

CALL = ["attention", "q=2,4,4,8", "k=2,4,4,8", "v=2,4,4,8"]
WORDS = " ".join(CALL)
QUICK = ["--device", "cpu", "--seconds", "0.001"]


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """A measurement begins by collecting garbage: a second in a process that holds what other tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables go."""
    found = tmp_path / "tables"
    found.mkdir()
    monkeypatch.setenv("XATTN_TABLES", str(found))
    return found


def slow_and_quick() -> list[EntryPoint]:
    """`slow` ranks higher, and takes 2 ms."""

    def plan(self: Any, request: Any) -> Any:
        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: Any) -> torch.Tensor:
            time.sleep(0.002)
            return torch.full_like(q, 30.0)

        return run

    return plugins(backend_of("slow", kernel(30, plan=plan)), backend_of("quick", kernel(20)))


def served() -> float:
    return float(xattn.attention(*qkv()).flatten()[0])


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_what_is_measured_is_what_auto_takes(run: Run, folder: Path) -> None:
    with fresh(slow_and_quick()):
        assert served() == 30
        document = json.loads(run("tune", *CALL, *QUICK, "--json").stdout)
        (measured,) = document["measured"]
        assert measured["call"] == WORDS
        assert measured["p50_us"]["slow"] > 2000 > measured["p50_us"]["quick"]
        assert served() == 30  # of this process the choice is made
    with fresh(slow_and_quick()):
        assert served() == 20
        told = xattn.explain(*qkv())
        assert told.measured is not None
        assert [told.measured.file] == [document["file"]] == [str(path) for path in folder.glob("*.json")]
        with xattn.use_backend("slow"):
            assert served() == 30


def test_backends_of_this_repository_are_measured_too(run: Run) -> None:
    result = run("tune", *CALL, *QUICK)
    assert result.exit_code == 0
    assert "1 kind of call measured" in result.stdout
    assert "sdpa" in result.stderr
    assert "reference" in result.stderr
    with fresh():
        assert {c.name for c in xattn.explain(*qkv()).candidates if c.p50_us} == {"sdpa", "reference"}


def test_a_run_goes_on_where_it_was_interrupted(
    run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls.txt"
    calls.write_text(f"{WORDS}\n{WORDS} causal=true  # the second\n{WORDS} softcap=2.0\n")
    seen = []

    def interrupted(*arguments: Any) -> Any:
        seen.append(arguments[0].words)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr("xattn.tune.running.measure", interrupted)
    with fresh(slow_and_quick()):
        result = run("tune", "--calls", str(calls), *QUICK, "--json")
        document = json.loads(result.stdout)
        assert result.exit_code == 1
        assert document["stopped"] == "interrupted; the same command goes on from here"
        assert len(document["measured"]) == 1
        document = json.loads(run("tune", "--calls", str(calls), *QUICK, "--json").stdout)
        assert (document["kept"], len(document["measured"]), document["stopped"]) == (1, 2, "")
        assert seen == [WORDS, f"{WORDS} causal=true", f"{WORDS} causal=true", f"{WORDS} softcap=2.0"]
        assert json.loads(run("tune", "--calls", str(calls), *QUICK, "--json").stdout)["kept"] == 3
        assert len(json.loads(run("tune", *CALL, "--again", *QUICK, "--json").stdout)["measured"]) == 1


def test_a_new_backend_is_measured_beside_the_others(run: Run) -> None:
    with fresh(slow_and_quick()):
        run("tune", *CALL, *QUICK)
    with fresh([*slow_and_quick(), *plugins(backend_of("new", kernel(10)), name="another")]):
        (measured,) = json.loads(run("tune", *CALL, *QUICK, "--json").stdout)["measured"]
        assert measured["p50_us"].keys() == {"slow", "quick", "new"}


def test_a_full_disk_is_said_and_leaves_what_was_there(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with fresh(slow_and_quick()):
        run("tune", *CALL, *QUICK)
        (path,) = folder.glob("*.json")
        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        result = run("tune", *CALL, "causal=true", *QUICK)
    assert result.exit_code == 1
    assert one_line(f"Stopped: {path} cannot be written, and is as it was: No space left on device") in one_line(
        result.stdout
    )
    assert path.read_bytes() == before


def test_a_kernel_that_fails_is_a_line_and_the_others_are_measured(run: Run) -> None:
    def plan(self: Any, request: Any) -> Any:
        raise RuntimeError("nvcc ended with 1\nand much more")

    with fresh(plugins(backend_of("broken", kernel(30, plan=plan)), backend_of("quick", kernel(20)))):
        result = run("tune", *CALL, *QUICK, "--json")
        document = json.loads(result.stdout)
        assert result.exit_code == 1
        assert document["failed"] == [f"broken: RuntimeError: nvcc ended with 1, in the call {WORDS}"]
        assert document["measured"][0]["p50_us"].keys() == {"quick"}
        shown = run("tune", *CALL, *QUICK, columns=200).stdout
        assert "Failed: broken: RuntimeError: nvcc ended with 1" in shown


def test_what_has_to_be_built_is_built_and_then_taken(run: Run) -> None:
    built = []

    def unbuilt(self: Any, request: Any) -> str:
        return "70 s of nvcc"

    def plan(self: Any, request: Any) -> Any:
        built.append(request)
        return lambda q, k, v: torch.full_like(q, 30.0)

    points = plugins(backend_of("jit", kernel(30, plan=plan, unbuilt=unbuilt)), slow_and_quick_alone())
    with fresh(points):
        assert served() == 10
        assert not built
        run("tune", *CALL, *QUICK)
        assert built
        assert served() == 10
    with fresh(points):
        assert served() == 30


def slow_and_quick_alone() -> xattn.Backend:
    """A backend that takes 2 ms and answers 10."""

    def plan(self: Any, request: Any) -> Any:
        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            time.sleep(0.002)
            return torch.full_like(q, 10.0)

        return run

    return backend_of("ready", kernel(10, plan=plan))


def test_gradients_are_measured_forward_and_backward(run: Run) -> None:
    grads = [f"{word}:grad" if "=" in word else word for word in CALL]
    (measured,) = json.loads(run("tune", *grads, *QUICK, "--json").stdout)["measured"]
    assert measured["p50_us"].keys() == {"sdpa", "reference"}
    with fresh():
        q, k, v = qkv()
        assert xattn.explain(q, k, v).measured is None
        assert xattn.explain(q.requires_grad_(), k, v).measured is not None


def test_the_calls_of_a_model(run: Run, tmp_path: Path) -> None:
    config = {"num_attention_heads": 2, "hidden_size": 16, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["--model", str(tmp_path), "--batch", "1", "--seqlen", "8"]
    document = json.loads(run("tune", *arguments, *QUICK, "--json").stdout)
    assert len(document["measured"]) == 2


WRONG: dict[str, tuple[list[str], str]] = {
    "no op": (["flash", "q=1"], "there is no op 'flash'"),
    "a call against the contract": ([*CALL[:3], "v=2,5,4,8"], "v: got seqlen_k 5"),
    "calls that are not there": (["--calls", "/nowhere.txt"], "No such file"),
    "no config": (["--model", "/nowhere"], "No such file"),
    "no such device": ([*CALL, "--device", "abacus"], "this machine can time calls on: cpu"),
    "sizes of text": (["--model", "/nowhere", "--batch", "many"], "'many' is not"),
}


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_wrong_usage_is_said_and_measures_nothing(arguments: list[str], text: str, run: Run, folder: Path) -> None:
    result: Result = run("tune", *arguments, columns=300)
    assert result.exit_code == 2
    assert text in one_line(result.stderr)
    assert "Traceback" not in result.stderr
    assert not list(folder.iterdir())


def test_an_illegal_call_of_a_file_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "calls.txt").write_text(f"{WORDS}\nattention q=1\n")
    result = run("tune", "--calls", str(tmp_path / "calls.txt"), *QUICK, columns=300)
    assert result.exit_code == 2
    assert "in the call: attention q=1" in result.stderr


def test_a_file_that_is_not_this_table_is_not_written_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"shopping": []}')
    result = run("tune", *CALL, "--out", str(tmp_path / "notes.json"), *QUICK, columns=300)
    assert result.exit_code == 2
    assert "is no table of xattn" in result.stderr
    assert (tmp_path / "notes.json").read_text() == '{"shopping": []}'


def test_where_tables_are_off_a_file_must_be_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XATTN_TABLES", "off")
    result = run("tune", *CALL, *QUICK, columns=300)
    assert result.exit_code == 2
    assert "XATTN_TABLES is off" in result.stderr
    assert run("tune", *CALL, *QUICK, "--out", str(tmp_path / "t.json")).exit_code == 0
    assert (tmp_path / "t.json").exists()


def test_a_large_problem_is_not_measured_by_what_holds_all_scores(run: Run) -> None:
    (call,) = described(["attention q=1,8192,4,8 k=1,8192,4,8 v=1,8192,4,8"], "cpu", torch.float32)
    assert call.able().keys() == {"sdpa"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_grids_are_calls_of_different_kinds(device: str) -> None:
    lines = grid(device)
    assert len(described(lines, "cpu", torch.bfloat16)) == len(lines) > 10


@pytest.mark.extended
def test_two_processes_at_once_lose_nothing(tmp_path: Path, folder: Path) -> None:
    """Each tunes calls of its own into the file of their environment, while the other does."""
    command = [sys.executable, "-m", "xattn", "tune", *QUICK, "--calls"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "plugins")))}
    running = []
    for i in range(2):
        calls = tmp_path / f"{i}.txt"
        calls.write_text("".join(f"{WORDS} softcap=2.0 causal={i} window={2**n},0\n" for n in range(1, 9)))
        running.append(subprocess.Popen([*command, str(calls)], env=environment, stdout=subprocess.DEVNULL))
    assert [each.wait(timeout=120) for each in running] == [0, 0]
    (path,) = folder.glob("*.json")
    assert len(json.loads(path.read_text())["rows"]) == 16
