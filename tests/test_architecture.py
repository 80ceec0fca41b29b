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
    "xattn/plugin": ("xattn.plugin",),
    "xattn/dispatch": ("xattn.dispatch", "xattn.plugin", "xattn.errors"),
    "xattn/ops/shared": ("xattn.ops.shared", "xattn.dispatch", "xattn.plugin", "xattn.errors"),
    **{
        f"xattn/ops/{op}": (f"xattn.ops.{op}", "xattn.ops.shared", "xattn.dispatch", "xattn.plugin", "xattn.errors")
        for op in OPS
    },
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
