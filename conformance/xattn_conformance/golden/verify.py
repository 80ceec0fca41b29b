"""Whether the goldens of this installation are the published ones. Offline, in seconds; a run begins with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xattn_conformance.case import SUITES
from xattn_conformance.golden.inputs import every_case, known
from xattn_conformance.golden.manifest import GENERATOR, SEMANTICS, GoldenError, Manifest, folder, read, sha256
from xattn_conformance.inputs.philox import KNOWN_ANSWERS, philox4x32
from xattn_conformance.ops.base import Op
from xattn_conformance.ops.registry import OPS


def verify(where: Path | None = None, ops: Iterable[str] = tuple(OPS)) -> list[str]:
    """What is wrong with the goldens in a folder, by default the installed ones; a sentence each, empty for none.

    ops: those whose cases are looked at.
    """
    where = where or folder()
    problems = list(_generator())
    try:
        manifest = read(where)
    except GoldenError as error:
        return [*problems, str(error)]
    problems += [*_versions(manifest), *_files(manifest, where)]
    for op in (OPS[name] for name in ops):
        problems += [*_op(op, manifest), *op.verify_stored(manifest, where)]
    return problems


def _generator() -> Iterator[str]:
    for counter, key, want in KNOWN_ANSWERS:
        c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
        lanes = philox4x32((c0, c1, c2, c3), key)
        got = tuple(int(lane[0]) for lane in lanes)
        if got != want:
            yield f"Philox4x32-10 of counter {counter} and key {key} is {got}, known is {want}"


def _versions(manifest: Manifest) -> Iterator[str]:
    for name, want in (("suite", SUITES[0]), ("semantics", SEMANTICS), ("generator", GENERATOR)):
        if (got := getattr(manifest, name)) != want:
            yield f"the goldens are of {name} {got}, installed is {want}"


def _files(manifest: Manifest, where: Path) -> Iterator[str]:
    for file, want in manifest.files.items():
        path = where / file
        if not path.exists():
            yield f"{file} is missing"
        elif (got := sha256(path.read_bytes())) != want:
            yield f"{file} is not the published file: its sha256 is {got}, the manifest has {want}"
    for path in sorted(where.glob("*.safetensors")):
        if path.name not in manifest.files:
            yield f"{path.name} is not in the manifest"


def _op(op: Op[Any], manifest: Manifest) -> Iterator[str]:
    """Every case must be known. Those that the op proves must have the inputs that they had, and its two ways of
    computing their goldens must agree."""
    try:
        inputs = known(op, manifest)
    except GoldenError as error:
        yield str(error)
        return
    for case in every_case(op):
        if case.id not in inputs:
            yield f"the golden inputs do not have those of {case.id}"
    for case in op.proved():
        problem = op.problem(case)
        if op.digest(problem) != inputs.get(case.id):
            yield f"{case.id}: its inputs, made here, have another sha256 than stored"
        elif wrong := op.disagreement(problem):
            yield f"{case.id}: {wrong}"
