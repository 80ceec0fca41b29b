"""The suite's rooms: nothing outside of an op's own folder knows the op, but the table of ops."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import xattn_conformance
from xattn_conformance.ops.registry import OPS

ROOT = Path(xattn_conformance.__file__).parent
PACKAGE = "xattn_conformance"
# The table of ops, and the bridge by which ops that are attention in another layout reach attention's room.
REGISTRY, BRIDGE = "ops/registry.py", "ops/attention_like.py"
# What is built on the bridge for all rooms with several sequences.
SEQUENCES = (
    "ops/sequences.py",
    "ops/sequence_cases.py",
    "ops/paged.py",
    "ops/paged_mutants.py",
    "ops/paged_variations.py",
    "ops/pool.py",
)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def room_of(file: str) -> str | None:
    """The op in whose room a file lies."""
    parts = Path(file).parts
    return parts[1] if parts[0] == "ops" and len(parts) > 2 else None


def imported(file: str) -> Iterator[str]:
    """What a file imports, wherever in it, with the names that are taken out of a module: they may be modules too."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ops_imported(file: str) -> set[str]:
    rooms = {f"{PACKAGE}.ops.{op}": op for op in OPS}
    return {op for module in imported(file) for room, op in rooms.items() if f"{module}.".startswith(f"{room}.")}


def test_every_op_has_a_room_of_its_name() -> None:
    rooms = {path.parent.name for path in ROOT.glob("ops/*/__init__.py")}
    assert rooms == set(OPS)
    for name, op in OPS.items():
        assert op.name == name
        assert op.room == ROOT / "ops" / name


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) is None])
def test_the_machinery_knows_no_op(file: str) -> None:
    if file == REGISTRY:
        assert ops_imported(file) == set(OPS)
        return
    assert ops_imported(file) == ({"attention"} if file == BRIDGE else set())
    constants = (node for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))) if is_text(node))
    assert not {node.value for node in constants} & set(OPS)  # type: ignore[attr-defined]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) is not None])
def test_an_op_knows_no_other_but_a_backward_its_forward(file: str) -> None:
    room = room_of(file)
    assert room is not None
    assert ops_imported(file) <= {room, room.removesuffix("_backward")}


@pytest.mark.parametrize("file", FILES)
def test_the_suite_knows_no_vendor(file: str) -> None:
    """Plugins are found as a user's are, and what runs a vendor's code elsewhere is a package of its own."""
    strangers = ("xattn_sdpa", "xattn_rocm", "xattn_neuron", "xattn_reference", "xattn_elsewhere")
    assert not [module for module in imported(file) if module.startswith(strangers)]


def test_the_bridge_is_only_for_rooms() -> None:
    bridge = f"{PACKAGE}.ops.attention_like."
    others = [file for file in FILES if file not in SEQUENCES]
    users = {room_of(file) for file in others if any(module.startswith(bridge) for module in imported(file))}
    assert users
    assert not {None, "attention"} & users
