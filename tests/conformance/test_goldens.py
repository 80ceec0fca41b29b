"""The stored goldens: verified in seconds, kept as they are, and every way of damaging them is seen and named."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from xattn_conformance.array import Array
from xattn_conformance.golden import inputs, verify
from xattn_conformance.golden import manifest as manifests
from xattn_conformance.golden.manifest import NAME, GoldenError, Manifest, read, sha256
from xattn_conformance.ops.attention import anchors, oracle, rowwise
from xattn_conformance.ops.attention.cases import load
from xattn_conformance.ops.attention.inputs import digest, make
from xattn_conformance.ops.attention.op import AttentionOp
from xattn_conformance.ops.attention.problem import Problem

CHOSEN = anchors.chosen()
# The cases that the suite began with.
FIRST = [case for case in load() if case.since == "1.0"]
# A dozen small ones, of several dtypes and families.
FEW = sorted(CHOSEN, key=lambda case: np.prod(list(case.shape.values())))[::27]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Goldens of a suite of few cases."""
    where = tmp_path_factory.mktemp("goldens") / "v1"
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        anchors.write(where)
    return where


@pytest.fixture
def goldens(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them to damage, while the suite has those few cases."""
    few(monkeypatch)
    return Path(shutil.copytree(published, tmp_path / "v1"))


def few(patch: pytest.MonkeyPatch, count: int = len(FEW)) -> None:
    patch.setattr(verify, "every_case", lambda op: [])
    patch.setattr(AttentionOp, "proved", lambda self: [])
    patch.setattr(anchors, "every_case", list)
    patch.setattr(anchors, "chosen", lambda: FEW[:count])
    patch.setattr(anchors, "candidates", lambda: {case.id: case for case in FEW[:count]})


def edited(where: Path, **changes: Any) -> None:
    """The manifest with other fields."""
    changed = msgspec.structs.replace(read(where), **changes)
    (where / NAME).write_bytes(msgspec.json.encode(changed))


def tampered(where: Path, tensor: str, change: Callable[[Any], Any], *, hashed: bool) -> str:
    """Change one tensor of an anchor, and the file's hash in the manifest too. Returns the anchor's id."""
    manifest = read(where)
    for file in manifest.files:
        tensors = safetensors.numpy.load_file(where / file)
        for key in sorted(tensors):
            name, _, each = key.rpartition(":")
            if each == tensor and tensors[key].size:
                values = tensors[key].copy()
                values.flat[values.size // 2] = change(values.flat[values.size // 2])
                tensors[key] = values
                data = safetensors.numpy.save(tensors)
                (where / file).write_bytes(data)
                if hashed:
                    edited(where, files={**manifest.files, file: sha256(data)})
                return name
    raise AssertionError(f"no anchor has {tensor}")


def slightly(value: float) -> float:
    return value * (1 + 1e-9) + 1e-9


def test_the_installed_goldens_verify_in_seconds_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise AssertionError("the goldens are verified offline")

    monkeypatch.setattr(socket, "socket", offline)
    begun = time.process_time()
    assert verify.verify() == []
    assert time.process_time() - begun < 10


def test_anchors_have_every_family_feature_and_recipe_and_stay_small() -> None:
    forward = [case for case in FIRST if not case.grads and "dropout_p" not in case.options]
    assert len(CHOSEN) >= 200
    for names in (
        lambda case: {case.family},
        lambda case: set(case.features),
        lambda case: {(name, value) for name, value in case.options.items() if isinstance(value, str | float)},
        lambda case: {case.dtype},
    ):
        assert set().union(*map(names, CHOSEN)) == set().union(*map(names, forward))
    assert sum(path.stat().st_size for path in manifests.folder().iterdir()) < 8e6


def test_the_manifest_knows_the_inputs_of_every_case() -> None:
    known = read(manifests.folder())
    assert {case.id for case in (*FIRST, *CHOSEN)} <= set(known.inputs)
    for case in load()[::97]:
        assert inputs.digest_of(case) == digest(make(case))
    other = msgspec.structs.replace(load()[0], title="unheard of")
    assert inputs.digest_of(other) is None
    assert manifests.manifest_digest() == sha256((manifests.folder() / NAME).read_bytes())


def test_few_goldens_verify(goldens: Path) -> None:
    assert len(FEW) > 10
    assert verify.verify(goldens, ["attention"]) == []


@pytest.mark.parametrize("tensor", ["out", "lse"])
def test_a_tampered_golden_is_seen(goldens: Path, tensor: str) -> None:
    name = tampered(goldens, tensor, slightly, hashed=False)
    problems = verify.verify(goldens, ["attention"])
    file = f"{name.split('/')[2]}.safetensors"
    assert any(each.startswith(f"{file} is not the published file: its sha256 is ") for each in problems)
    assert any(each.startswith(f"anchor {name}: {tensor}[") and "stored is" in each for each in problems)
    assert len(problems) == 2


@pytest.mark.parametrize("tensor", ["out", "lse"])
def test_a_tampered_golden_is_seen_where_the_manifest_was_made_to_fit(goldens: Path, tensor: str) -> None:
    name = tampered(goldens, tensor, slightly, hashed=True)
    (problem,) = verify.verify(goldens, ["attention"])
    assert problem.startswith(f"anchor {name}: {tensor}[")


def test_a_golden_that_is_no_longer_finite_is_seen(goldens: Path) -> None:
    name = tampered(goldens, "out", lambda value: np.nan, hashed=True)
    (problem,) = verify.verify(goldens, ["attention"])
    assert problem.startswith(f"anchor {name}: out[")


def test_tampered_inputs_are_seen(goldens: Path) -> None:
    name = tampered(goldens, "k", lambda code: code ^ 1, hashed=True)
    assert verify.verify(goldens, ["attention"]) == [
        f"anchor {name}: its k, made here, is not bit for bit the stored one"
    ]


def test_other_inputs_in_the_manifest_are_seen(goldens: Path) -> None:
    edited(goldens, inputs={**read(goldens).inputs, FEW[0].id: "0" * 64})
    assert verify.verify(goldens, ["attention"]) == [
        f"anchor {FEW[0].id}: its inputs, made here, have another sha256 than in the manifest"
    ]


def test_a_case_that_the_manifest_lacks_is_seen(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "every_case", lambda op: [load()[0]] if op.name == "attention" else [])
    assert verify.verify(goldens, ["attention"]) == [f"the golden inputs do not have those of {load()[0].id}"]


def test_a_missing_file_is_seen(goldens: Path) -> None:
    (goldens / "float16.safetensors").unlink()
    problems = verify.verify(goldens, ["attention"])
    assert problems[0] == "float16.safetensors is missing"
    lost = [case.id for case in FEW if case.dtype == "float16"]
    assert sorted(problems[1:]) == sorted(f"anchor {name} is missing" for name in lost)
    assert lost


def test_a_truncated_file_is_seen(goldens: Path) -> None:
    path = goldens / "float16.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    problems = verify.verify(goldens, ["attention"])
    assert problems[0].startswith("float16.safetensors is not the published file: ")
    assert problems[1].startswith("float16.safetensors cannot be read: ")


def test_an_anchor_may_be_more_than_what_must_be_there(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As when a new case is smaller than what was the smallest of its family.
    monkeypatch.setattr(anchors, "chosen", lambda: FEW[1:])
    assert verify.verify(goldens, ["attention"]) == []
    anchors.write(goldens)
    assert verify.verify(goldens, ["attention"]) == []
    tampered(goldens, "out", slightly, hashed=True)
    assert len(verify.verify(goldens, ["attention"])) == 1


def test_a_file_of_nobody_is_seen(goldens: Path) -> None:
    shutil.copy(goldens / "float16.safetensors", goldens / "more.safetensors")
    assert verify.verify(goldens, ["attention"]) == ["more.safetensors is not in the manifest"]


def test_an_anchor_of_no_case_is_seen(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, len(FEW) - 1)
    assert verify.verify(goldens, ["attention"]) == [f"anchor {FEW[-1].id} is of no case of this suite"]


@pytest.mark.parametrize("keep", [0, 40, -10])
def test_a_truncated_manifest_is_seen(goldens: Path, keep: int) -> None:
    path = goldens / NAME
    path.write_bytes(path.read_bytes()[:keep])
    (problem,) = verify.verify(goldens, ["attention"])
    assert problem.startswith("the golden manifest manifest.json is damaged: ")


def test_a_manifest_with_more_in_it_is_seen(goldens: Path) -> None:
    path = goldens / NAME
    path.write_bytes(path.read_bytes().replace(b"{", b'{"rtol": 1.0,', 1))
    (problem,) = verify.verify(goldens, ["attention"])
    assert "unknown field `rtol`" in problem


def test_a_missing_manifest_is_seen(goldens: Path) -> None:
    (goldens / NAME).unlink()
    (problem,) = verify.verify(goldens, ["attention"])
    assert problem == "the golden manifest manifest.json cannot be read: No such file or directory"


@pytest.mark.parametrize("field", ["suite", "semantics", "generator"])
def test_goldens_of_another_version_are_seen(goldens: Path, field: str) -> None:
    edited(goldens, **{field: "0.9"})
    (problem,) = verify.verify(goldens, ["attention"])
    assert problem == f"the goldens are of {field} 0.9, installed is {getattr(read(manifests.folder()), field)}"


def test_a_generator_that_is_not_philox_is_seen(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "philox4x32", lambda counter, key: counter)
    assert sum("Philox4x32-10" in each for each in verify.verify(goldens, ["attention"])) >= 2


@pytest.mark.parametrize("module", [oracle, rowwise], ids=["oracle", "rowwise"])
def test_an_oracle_that_is_off_is_seen(goldens: Path, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    right = module.forward

    def off(problem: Problem) -> tuple[Array, Array]:
        out, lse = right(problem)
        return out * (1 + 1e-11), lse

    monkeypatch.setattr(module, "forward", off)
    problems = verify.verify(goldens, ["attention"])
    assert problems
    assert all(("by the other oracle, " in each) == (module is rowwise) for each in problems)


def test_later_cases_are_proved_by_both_oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    proved = AttentionOp().proved()
    assert {case.since for case in proved} >= {"1.1", "1.2"}
    assert any(isinstance(case.options.get("align"), int) for case in proved)
    right = rowwise.forward
    monkeypatch.setattr(rowwise, "forward", lambda problem: (right(problem)[0] * (1 + 1e-11), right(problem)[1]))
    assert "by the other oracle, out[" in AttentionOp().disagreement(make(proved[0]))


def test_what_is_published_is_not_rewritten(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in goldens.iterdir()}
    anchors.write(goldens)
    assert {path.name: path.read_bytes() for path in goldens.iterdir()} == before

    right = oracle.forward
    monkeypatch.setattr(oracle, "forward", lambda problem: (right(problem)[0] + 1e-9, right(problem)[1]))
    with pytest.raises(GoldenError, match=r"would change .*, and \d+ more\): use --new-version"):
        anchors.write(goldens)
    monkeypatch.setattr(oracle, "forward", right)
    monkeypatch.setattr(anchors, "digest", lambda problem: "0" * 64)
    with pytest.raises(GoldenError, match="other inputs"):
        anchors.write(goldens)
    few(monkeypatch, 3)
    with pytest.raises(GoldenError, match="no longer a case"):
        anchors.write(goldens)
    assert {path.name: path.read_bytes() for path in goldens.iterdir()} == before


def test_a_golden_may_be_added(goldens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = tmp_path / "fewer"
    few(monkeypatch, 5)
    anchors.write(fewer)
    few(monkeypatch)
    anchors.write(fewer)
    assert {path.name: path.read_bytes() for path in fewer.iterdir()} == {
        path.name: path.read_bytes() for path in goldens.iterdir()
    }


def test_a_new_version_is_a_folder_of_its_own(
    goldens: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manifests, "DATA", goldens.parent)
    monkeypatch.setattr(anchors, "DATA", goldens.parent)
    monkeypatch.setattr("sys.argv", ["anchors"])
    edited(goldens, inputs={**read(goldens).inputs, FEW[0].id: "0" * 64})
    assert anchors.main() == 1
    assert "other inputs" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["anchors", "--new-version"])
    assert anchors.main() == 0
    assert capsys.readouterr().out.startswith(f"v2: {len(FEW)} anchors, ")
    assert manifests.folder() == goldens.parent / "v2"
    assert verify.verify() == []
    assert isinstance(read(goldens), Manifest)
