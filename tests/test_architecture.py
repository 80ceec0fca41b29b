"""The rooms of docs/architecture.md, and what each may import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from xattn.ops.table import OPS

PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if path.name.startswith("xattn_"))

# Of each room, by its folder, what it may import of xattn and of the plugins. A name stands for all below it, but
# "xattn" for itself alone: what a plugin gets by `import xattn`.
MAY: dict[str, tuple[str, ...]] = {
    "xattn/plugin": ("xattn.plugin", "xattn.errors"),
    "xattn/dispatch": ("xattn.dispatch", "xattn.plugin", "xattn.errors"),
    "xattn/ops/shared": ("xattn.ops.shared", "xattn.dispatch", "xattn.plugin", "xattn.errors"),
    **{
        f"xattn/ops/{op}": (f"xattn.ops.{op}", "xattn.ops.shared", "xattn.dispatch", "xattn.plugin", "xattn.errors")
        for op in OPS
    },
    "xattn/cache": ("xattn", "xattn.cache", "xattn.plugin", "xattn.errors"),
    **{f"plugins/{name}": ("xattn", "xattn.plugin", name) for name in PLUGINS},
}


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, for type checkers too; of `from a import b` what stands for a.b, where
    that is a module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}") else str(node.module)


def is_module(name: str) -> bool:
    path = Path(*name.split("."))
    places = (ROOT, ROOT / "plugins", ROOT / "conformance")
    return any((place / path).is_dir() or (place / path).with_suffix(".py").is_file() for place in places)


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == "xattn" or module.startswith("xattn_")


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_what_it_may(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        for module in filter(is_ours, imported(file)):
            allowed = any(module == name or (name != "xattn" and module.startswith(f"{name}.")) for name in MAY[room])
            assert allowed, f"{file.relative_to(ROOT)} imports {module}"


def test_every_op_has_its_room() -> None:
    rooms = {path.name for path in (ROOT / "xattn" / "ops").iterdir() if (path / "__init__.py").exists()}
    assert rooms == {*OPS, "shared"}


# Who may name an op outside its room: the face, the table, and the rooms above the ops, which use the public functions.
# `explain` and `plan` have the types of the op that a tensor in first place means.
NAMES_OPS = (
    "xattn/__init__.py",
    "xattn/explain.py",
    "xattn/ops/table.py",
    "xattn/plan.py",
    *(f"xattn/{room}/" for room in ("cache", "compat", "integrations", "parallel", "testing", "tune")),
    *(f"xattn/ops/{op}/" for op in OPS),
)


def named_ops(file: Path) -> Iterator[str]:
    """The ops that a file names: in an import, as an attribute of xattn, or as a string."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and node.value in OPS:
            yield str(node.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xattn":
            yield from {node.attr} & OPS.keys()
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "xattn":
            yield from {*str(node.module).split("."), *(alias.name for alias in node.names)} & OPS.keys()
        elif isinstance(node, ast.Import):
            yield from {part for alias in node.names for part in alias.name.split(".")} & OPS.keys()


@pytest.mark.parametrize("file", sorted((ROOT / "xattn").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_else_names_an_op(file: Path) -> None:
    place = file.relative_to(ROOT).as_posix()
    if not place.startswith(NAMES_OPS):
        assert not set(named_ops(file)), place


def test_the_ops_are_named_where_they_may_be() -> None:
    """Else the test above could not tell."""
    for place in ("xattn/__init__.py", "xattn/ops/table.py"):
        assert set(named_ops(ROOT / place)) == OPS.keys()


def test_the_rooms_of_the_tests_are_those_of_the_ops() -> None:
    """An op brings samples and illegal calls, by which the tests over every op reach it."""
    rooms = {path.name for path in (ROOT / "tests" / "ops").iterdir() if (path / "samples.py").exists()}
    assert rooms == OPS.keys()
    assert all((ROOT / "tests" / "ops" / op / "illegal.py").exists() for op in OPS)
