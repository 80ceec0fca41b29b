"""The hash of every case's inputs. Those of the first cases are in the manifest, whose own hash stands in published
reports; an op that came later, or came by more cases, has a file of its own in its room.

`python -m xattn_conformance.golden.inputs` writes the files of the rooms. What is written stays: a case may be added,
and where its inputs would change, that is another version of the suite.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from xattn_conformance.case import Case
from xattn_conformance.golden.manifest import GoldenError, Manifest, installed
from xattn_conformance.ops.base import Op
from xattn_conformance.ops.registry import OPS

FILE = "inputs.json"


def digest_of(case: Case) -> str | None:
    """sha256 of the bits that the case's inputs must have, as `Op.digest`; None where it is unknown. Raises
    GoldenError."""
    return installed().inputs.get(case.id) or in_room(OPS[case.op]).get(case.id)


def known(op: Op[Any], manifest: Manifest) -> Mapping[str, str]:
    """sha256 of the inputs by the id of the case: those of a manifest, and those in the op's room. Raises
    GoldenError."""
    return {**in_room(op), **manifest.inputs}


def every_case(op: Op[Any]) -> list[Case]:
    return [*op.cases(), *op.knob_cases()]


@cache
def in_room(op: Op[Any]) -> Mapping[str, str]:
    """Of the cases that the manifest does not know; empty where the op has no such file. Raises GoldenError."""
    path = op.room / FILE
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise GoldenError(f"the golden inputs of {op.name} are damaged: {error}") from error


def write(op: Op[Any]) -> int:
    """The file of a room, keeping what is there. Returns how many cases it is of. Raises GoldenError where something
    there would change."""
    first = installed().inputs
    made = {case.id: op.digest(op.problem(case)) for case in every_case(op) if case.id not in first}
    if changed := [name for name, digest in in_room(op).items() if made.get(name) != digest]:
        raise GoldenError(f"published inputs would change: {changed[0]}, and {len(changed) - 1} more")
    if made:
        text = msgspec.json.format(msgspec.json.encode(dict(sorted(made.items()))), indent=1)
        (op.room / FILE).write_bytes(text + b"\n")
    return len(made)


def main() -> int:
    for op in OPS.values():
        try:
            print(f"{op.name}: inputs of {write(op)} cases that the manifest does not know")
        except GoldenError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
