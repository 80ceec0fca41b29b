"""Whether the goldens of this installation are the published ones. Offline, in seconds; a run begins with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xattn_conformance.case import Case
from xattn_conformance.golden import others, rowwise
from xattn_conformance.golden.anchors import Tensors, anchor, candidates, chosen, differ, every_case, stored
from xattn_conformance.golden.manifest import GENERATOR, SEMANTICS, GoldenError, Manifest, folder, read, sha256
from xattn_conformance.golden.manifest import manifest_digest as manifest_digest
from xattn_conformance.inputs.philox import KNOWN_ANSWERS, philox4x32
from xattn_conformance.ops.attention.problem import digest, make
from xattn_conformance.result import SUITE

# The slow oracle sees the anchors of at most so many scores.
_SCORES_MAX = 2500


def verify(where: Path | None = None) -> list[str]:
    """What is wrong with the goldens in a folder, by default the installed ones; a sentence each, empty for none."""
    where = where or folder()
    problems = list(_generator())
    try:
        manifest = read(where)
    except GoldenError as error:
        return [*problems, str(error)]
    problems += [*_versions(manifest), *_files(manifest, where), *_cases(manifest), *_anchors(manifest, where)]
    return [*problems, *others.verify()]


def _generator() -> Iterator[str]:
    for counter, key, want in KNOWN_ANSWERS:
        c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
        lanes = philox4x32((c0, c1, c2, c3), key)
        got = tuple(int(lane[0]) for lane in lanes)
        if got != want:
            yield f"Philox4x32-10 of counter {counter} and key {key} is {got}, known is {want}"


def _versions(manifest: Manifest) -> Iterator[str]:
    for name, want in (("suite", SUITE), ("semantics", SEMANTICS), ("generator", GENERATOR)):
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


def _cases(manifest: Manifest) -> Iterator[str]:
    for case in (*every_case(), *chosen()):
        if case.id not in manifest.inputs:
            yield f"the manifest does not have the inputs of {case.id}"


def _anchors(manifest: Manifest, where: Path) -> Iterator[str]:
    known = candidates()
    found = set()
    for file in manifest.files:
        if not (where / file).exists():
            continue
        try:
            anchors = list(stored(where / file))
        except GoldenError as error:
            yield str(error)
            continue
        for name, tensors in anchors:
            found.add(name)
            if name not in known:
                yield f"anchor {name} is of no case of this suite"
            elif wrong := _anchor(manifest, known[name], tensors):
                yield f"anchor {name}: {wrong}"
    for name in sorted({case.id for case in chosen()} - found):
        yield f"anchor {name} is missing"


def _anchor(manifest: Manifest, case: Case, tensors: Tensors) -> str:
    problem = make(case)
    if digest(problem) != manifest.inputs.get(case.id):
        return "its inputs, made here, have another sha256 than in the manifest"
    made = anchor(problem)
    if set(made) != set(tensors):
        return f"it has {', '.join(sorted(tensors))}; want {', '.join(sorted(made))}"
    for name in sorted(set(made) - {"out", "lse"}):
        if made[name].dtype != tensors[name].dtype or not np.array_equal(made[name], tensors[name]):
            return f"its {name}, made here, is not bit for bit the stored one"
    if wrong := differ(made, tensors):
        return wrong
    if np.prod(problem.scores_shape) <= _SCORES_MAX:
        out, lse = rowwise.forward(problem)
        if wrong := differ({"out": out, "lse": lse}, tensors):
            return f"by the other oracle, {wrong}"
    return ""
