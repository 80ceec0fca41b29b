"""Worker processes: what crashes or hangs costs one case. And ops that the runner has never heard of."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conformance.strangers import PROFILE, honest, install
from numpy.typing import NDArray
from support import extended
from torch import Tensor
from xattn_conformance.case import Case
from xattn_conformance.ops.base import Answer, Layout, Op, Variation
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.running import selection
from xattn_conformance.running.judge import judge
from xattn_conformance.running.pool import Judging, Pool
from xattn_conformance.running.protocol import Start
from xattn_conformance.running.target import Target, TargetError
from xattn_conformance.tolerance.arithmetic import Arithmetic
from xattn_conformance.tolerance.expected import Expected

# Small cases of three lengths, of which a backend can spoil one.
PATTERN = "attention/causal+lse/float32/b?-q1?-k1?-*/needle"


def cases() -> list[Case]:
    return sorted(selection.select("core", ["float32"], PATTERN), key=lambda case: case.shape["seqlen_q"])


def start(name: str = "acme", profile: str = PROFILE) -> Start:
    return Start(backend=name, device="cpu", profile=profile.format(name), threads=1)


def spoilt(what: str) -> str:
    """A backend that does something else in the second of the cases."""
    return honest(before=f"{what} if q.shape[1] == {cases()[1].shape['seqlen_q']} else None")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a stranger's plugin for the worker processes."""

    def make(body: str) -> None:
        for name, value in install(tmp_path / "strangers", "acme", body).items():
            monkeypatch.setenv(name, value)

    return make


CRASHES = {
    "abort": ("__import__('os').abort()", "the process that ran the case died of SIGABRT"),
    "segfault": ("__import__('ctypes').string_at(0)", "the process that ran the case died of SIGSEGV"),
    "exit": ("__import__('os')._exit(7)", "the process that ran the case ended with exit code 7"),
    "hang": ("__import__('time').sleep(600)", "the process that ran the case gave no answer within 4 s"),
}


@pytest.mark.parametrize("name", ["segfault", *extended("hang", "abort", "exit")])
def test_a_crash_costs_one_case(name: str, plugin: Any) -> None:
    what, said = CRASHES[name]
    plugin(spoilt(what))
    began = time.monotonic()
    with Pool([Judging(start(), timeout=4)]) as pool:
        results = {result.id: result for result in pool.judge(cases())}
    assert [results[case.id].status for case in cases()] == ["PASS", "ERROR", "PASS"]
    lost = results[cases()[1].id]
    assert lost.message == said
    assert "--case" in lost.reproduce
    assert time.monotonic() - began < 40
    if name == "segfault":
        assert "Segmentation fault" in lost.detail


def test_a_child_that_holds_the_pipe_hides_no_death(plugin: Any) -> None:
    child = "(__import__('time').sleep(60), os._exit(0)) if os.fork() == 0 else os.abort()"
    plugin(honest(before=f"import os; {child}"))
    began = time.monotonic()
    judging = Judging(start(), timeout=30)
    try:
        assert judging.judge(cases()[0]).message == "the process that ran the case died of SIGABRT"
    finally:
        judging.close()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("ends", ["early", "late"])
def test_no_child_outlives_the_process(ends: str, plugin: Any, tmp_path: Path) -> None:
    """Neither where the process is given up nor where it is no longer needed."""
    wait = "time.sleep(600)" if ends == "early" else "None"
    child = f"(time.sleep(60), os._exit(0)) if pid == 0 else (open('{tmp_path}/pid', 'w').write(str(pid)), {wait})"
    plugin(honest(before=f"import os, time; pid = os.fork(); {child}"))
    judging = Judging(start(), timeout=2)
    try:
        assert judging.judge(cases()[0]).status == ("ERROR" if ends == "early" else "PASS")
    finally:
        judging.close()
    assert not runs(int((tmp_path / "pid").read_text()))


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie: its parent is gone, and who inherits it may be slow to look."""
    for _ in range(50):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True


def test_what_a_backend_prints_is_no_answer(plugin: Any) -> None:
    plugin(honest(before="print('{}'); __import__('os').write(1, b'hello\\n'); __import__('sys').stdin.read()"))
    with Pool([Judging(start(), timeout=20) for _ in range(2)]) as pool:
        assert {result.status for result in pool.judge(cases())} == {"PASS"}


def test_leaving_early_ends_the_processes(plugin: Any) -> None:
    plugin(honest())
    with Pool([Judging(start(), timeout=20)]) as pool:
        next(pool.judge(cases()))
        process = pool.members[0]._process
        assert process is not None
    assert process._process.poll() is not None


@pytest.mark.parametrize(
    ("name", "environment", "said"),
    [
        ("nobody", {}, "no backend or plugin is called 'nobody'"),
        ("reference", {"XATTN_DISABLE": "reference"}, "the backend 'reference' is disabled by XATTN_DISABLE=reference"),
    ],
)
def test_a_worker_without_its_backend_says_so(
    name: str, environment: Mapping[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(TargetError, match=said):
        Judging(start(name), timeout=20).ready()


def test_another_choice_of_backend_redirects_nothing(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(honest(after="raise RuntimeError('it is me')"))
    monkeypatch.setenv("XATTN_BACKEND", "reference")
    judging = Judging(start(), timeout=20)
    try:
        assert judging.judge(cases()[0]).message == "RuntimeError: it is me"
    finally:
        judging.close()


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ("nowhere:executor", "cannot be loaded"),
        ("conformance.strangers:nothing", "cannot be loaded"),
        ("conformance.strangers:honest", "with an attribute provenance"),
    ],
)
def test_an_executor_that_is_none_is_an_error(executor: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__)
    monkeypatch.setenv("PYTHONPATH", f"{here.parents[0]}{os.pathsep}{here.parents[1]}", prepend=os.pathsep)
    profile = PROFILE.replace("[arithmetic]", f'executor = "{executor}"\n[arithmetic]')
    with pytest.raises(TargetError, match=said):
        Judging(start("reference", profile), timeout=20).ready()


def test_an_executor_runs_the_case_and_its_provenance_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import xattn\n"
        "class Executor:\n"
        "    provenance = 'stand-in'\n"
        "    def __call__(self, op, arguments, backend):\n"
        "        raise KeyError(f'{backend} runs {op} here')\n"
        "executor = Executor()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    profile = PROFILE.replace("[arithmetic]", 'executor = "elsewhere:executor"\n[arithmetic]')
    judging = Judging(start("reference", profile), timeout=20)
    try:
        result = judging.judge(cases()[0])
    finally:
        judging.close()
    assert (result.message, result.provenance) == ("KeyError: 'reference runs attention here'", "stand-in")


def test_a_device_that_the_profile_does_not_name_is_no_hardware() -> None:
    judging = Judging(start("reference", PROFILE.replace('["cpu"]', "[]")), timeout=20)
    try:
        assert judging.ready().provenance == "vendor code elsewhere"
    finally:
        judging.close()


class Doubling(Op[NDArray[np.float64]]):
    """An op of one argument, as small as one can be."""

    name = "doubling"
    anchored: ClassVar[bool] = False

    def cases(self) -> Sequence[Case]:
        shape = {"batch": 2, "seqlen_q": 3, "nheads": 1, "headdim": 4}
        return [
            Case(
                op="doubling",
                title="plain",
                level="core",
                dtype="float32",
                family="normal",
                shape=shape,
                variations=("repeat", "halves"),
            )
        ]

    def problem(self, case: Case) -> NDArray[np.float64]:
        return np.arange(24, dtype=np.float64).reshape(2, 3, 1, 4)

    def digest(self, problem: NDArray[np.float64]) -> str:
        return "none"

    def inputs(self, problem: NDArray[np.float64]) -> Mapping[str, NDArray[Any]]:
        return {"x": problem}

    def expected(self, case: Case, problem: NDArray[np.float64], arithmetic: Arithmetic) -> Mapping[str, Expected]:
        value = 2 * problem.transpose(0, 2, 1, 3)
        return {"out": Expected(value, np.full_like(value, 1e-6))}

    def call(self, case: Case, problem: NDArray[np.float64], device: str) -> Call:
        return Call(self.name, {"x": torch.from_numpy(problem).float().to(device)}, {})

    def layout(self, name: str, tensor: Tensor) -> NDArray[np.float64]:
        values: NDArray[np.float64] = tensor.double().numpy()
        return np.swapaxes(values, 1, 2)

    def explain(self, call: Call, backend: str) -> Answer:
        return Answer(None, (), "doubler")

    def results(self, call: Call) -> Mapping[str, Layout]:
        return {"out": Layout(tuple(call.tensors["x"].shape), torch.float32, contiguous=True)}

    def vary(self, name: str, case: Case, problem: Any, call: Call, device: str) -> Variation:
        rows = [call.with_tensors(x=call.tensors["x"][i : i + 1]) for i in range(2)]
        return Variation(
            "with the rows called alone", tuple(rows), lambda found: {"out": torch.cat([each["out"] for each in found])}
        )


@pytest.mark.parametrize(
    ("double", "bad"),
    [
        (lambda x: 2 * x, set()),
        (lambda x: 2 * x + 1e-3, {"out.zmax", "out.zrow", "out.zhead", "out.bias"}),
        (lambda x: 2 * x + (x.shape[0] == 1), {"halves:out.zmax"}),
    ],
)
def test_a_new_op_plugs_in(double: Any, bad: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    op = Doubling()
    monkeypatch.setitem(OPS, "doubling", op)
    assert [case.id for case in selection.select("core", ["float32"], "doubling/*")] == [
        "doubling/plain/float32/b2-q3-h1-d4/normal"
    ]

    def execute(op: str, arguments: Mapping[str, Any], backend: str) -> Any:
        return double(arguments["x"])

    judged = Target("reference", "cpu", "cpu", parse(PROFILE.format("reference")), execute, "hardware")
    result = judge(op.cases()[0], judged)
    assert result.status == ("FAIL" if bad else "PASS"), result.message + result.detail
    assert bad <= {check.name for check in result.checks if not check.ok}
    assert result.kernel == "doubler"
