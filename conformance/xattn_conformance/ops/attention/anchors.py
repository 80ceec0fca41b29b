"""Stored goldens: inputs and answers of small cases, as they were when the suite was published.

`python -m xattn_conformance.ops.attention.anchors` writes them. What is written stays: a case may be added, and where a
golden or the inputs of a case would change, that is another version of the suite, written with --new-version.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from xattn_conformance.case import DTYPES, SUITES, Case
from xattn_conformance.golden.manifest import (
    DATA,
    GENERATOR,
    NAME,
    SEMANTICS,
    GoldenError,
    Manifest,
    folder,
    read,
    sha256,
)
from xattn_conformance.ops.attention import oracle, rowwise
from xattn_conformance.ops.attention.cases import knobs, load
from xattn_conformance.ops.attention.inputs import bits, digest, make
from xattn_conformance.ops.attention.problem import Problem

Tensors = dict[str, NDArray[Any]]

# Of an anchor, more or less: all of them together are to stay below 8 MB.
_BYTES_MAX = 32 * 1024
_HEADDIM = 4
# The slow oracle sees the anchors of at most so many scores.
SCORES_MAX = 2500


def every_case() -> list[Case]:
    """All cases whose inputs the manifest knows, but for the anchors': those that the suite began with."""
    return [case for case in (*load(), *(knob.on for knob in knobs())) if case.since == SUITES[0]]


def candidates() -> dict[str, Case]:
    """What may be an anchor, by id: every forward case that the suite began with, its headdim made small, which keeps
    masks, heads and families as they are."""
    first = [case for case in load() if case.since == SUITES[0]]
    forward = [case for case in first if not case.grads and "dropout_p" not in case.options]
    shrunk = [msgspec.structs.replace(case, shape=_shrunk(case), variations=()) for case in forward]
    return {case.id: case for case in shrunk}


def chosen() -> list[Case]:
    """The anchors that must be there: the small candidates and the smallest of each family, in one dtype each. The seed
    says which, so that a new case moves no other."""
    found = [case for case in candidates().values() if case.dtype == DTYPES[case.seed % len(DTYPES)]]
    smallest: dict[str, Case] = {}
    for case in sorted(found, key=_size):
        smallest.setdefault(case.family, case)
    return [case for case in found if _size(case) <= _BYTES_MAX or case in smallest.values()]


def _shrunk(case: Case) -> dict[str, int]:
    size = case.shape
    wider = size["headdim_v"] - size["headdim"]
    headdim_v = _HEADDIM if wider == 0 else _HEADDIM // 2 if wider < 0 else 2 * _HEADDIM
    if case.family == "onehot":
        headdim_v = size["seqlen_k"]
    return {**size, "headdim": _HEADDIM, "headdim_v": headdim_v}


def _size(case: Case) -> int:
    """Bytes of q, k, v, out and lse, about what the anchor takes."""
    size = case.shape
    width = 4 if case.dtype == "float32" else 2
    rows = size["batch"] * size["seqlen_q"] * size["nheads"]
    keys = size["batch"] * size["seqlen_k"] * size["nheads_k"]
    inputs = width * (rows * size["headdim"] + keys * (size["headdim"] + size["headdim_v"]))
    return inputs + 8 * rows * (size["headdim_v"] + 1)


def anchor(problem: Problem) -> Tensors:
    """The input bits, and out and lse in float64."""
    out, lse = oracle.forward(problem)
    return {**bits(problem), "out": out, "lse": lse}


def stored(path: Path) -> Iterator[tuple[str, Tensors]]:
    """(id, tensors) of every anchor of a file. Raises GoldenError."""
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise GoldenError(f"{path.name} cannot be read: {error}") from error
    anchors: dict[str, Tensors] = {}
    for key, values in sorted(tensors.items()):
        name, _, tensor = key.rpartition(":")
        anchors.setdefault(name, {})[tensor] = values
    yield from anchors.items()


def differ(got: Tensors, want: Tensors) -> str:
    """How a golden answer differs from the stored one: "" where out agrees to 1e-12 of the largest in its row, and lse
    to 1e-12 of itself."""
    for name in ("out", "lse"):
        one, other = got[name], want[name]
        if one.shape != other.shape:
            return f"{name} has the shape {one.shape}, stored is {other.shape}"
        size = np.abs(np.where(np.isfinite(other), other, 0.0))
        if name == "out":
            size = size.max(axis=-1, keepdims=True, initial=0.0)
        with np.errstate(invalid="ignore"):
            right = (np.abs(one - other) <= 1e-12 * size) | (one == other) | (np.isnan(one) & np.isnan(other))
        if not right.all():
            at = tuple(int(n) for n in np.argwhere(~right)[0])
            return f"{name}{list(at)} is {one[at]!r}, stored is {other[at]!r}"
    return ""


def verify(manifest: Manifest, where: Path) -> Iterator[str]:
    """What is wrong with the anchors in a folder, a sentence each."""
    known = candidates()
    for case in chosen():
        if case.id not in manifest.inputs:
            yield f"the manifest does not have the inputs of {case.id}"
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
    if np.prod(problem.scores_shape) <= SCORES_MAX:
        out, lse = rowwise.forward(problem)
        if wrong := differ({"out": out, "lse": lse}, tensors):
            return f"by the other oracle, {wrong}"
    return ""


def write(where: Path) -> None:
    """Write the anchors and the manifest, keeping what is there. Raises GoldenError where something there would
    change."""
    kept: dict[str, Tensors] = {}
    inputs: dict[str, str] = {}
    if (where / NAME).exists():
        manifest = read(where)
        inputs = dict(manifest.inputs)
        kept = {name: tensors for file in manifest.files for name, tensors in stored(where / file)}
    files: dict[str, Tensors] = {f"{dtype}.safetensors": {} for dtype in DTYPES}
    possible = candidates()
    anchors = {case.id: case for case in chosen()} | {name: possible[name] for name in kept if name in possible}
    cases = {case.id: case for case in (*every_case(), *anchors.values())}
    changed = [f"{name}: no longer a case" for name in sorted({*inputs, *kept} - set(cases))]
    for case in cases.values():
        problem = make(case)
        made = digest(problem)
        if inputs.setdefault(case.id, made) != made:
            changed.append(f"{case.id}: other inputs")
        if case.id in anchors:
            golden = anchor(problem)
            if case.id in kept and (wrong := differ(golden, kept[case.id])):
                changed.append(f"{case.id}: {wrong}")
            kept.setdefault(case.id, golden)
    if changed:
        more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise GoldenError(f"published goldens would change ({'; '.join(changed[:3])}{more}): use --new-version")
    for name, tensors in kept.items():
        dtype = name.split("/")[2]
        files[f"{dtype}.safetensors"] |= {f"{name}:{tensor}": values for tensor, values in tensors.items()}
    where.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for file, contents in files.items():
        data = safetensors.numpy.save({key: np.ascontiguousarray(contents[key]) for key in sorted(contents)})
        (where / file).write_bytes(data)
        hashes[file] = sha256(data)
    written = Manifest(
        suite=SUITES[0], semantics=SEMANTICS, generator=GENERATOR, files=hashes, inputs=dict(sorted(inputs.items()))
    )
    (where / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=1) + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the stored goldens of the suite.")
    parser.add_argument("--new-version", action="store_true", help="beside the published ones, in a folder of its own")
    where = folder()
    if parser.parse_args().new_version and (where / NAME).exists():
        where = DATA / f"v{int(where.name[1:]) + 1}"
    try:
        write(where)
    except GoldenError as error:
        print(error, file=sys.stderr)
        return 1
    manifest = read(where)
    size = sum((where / file).stat().st_size for file in manifest.files)
    print(f"{where.name}: {len(chosen())} anchors, {size / 1e6:.1f} MB, inputs of {len(manifest.inputs)} cases")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
