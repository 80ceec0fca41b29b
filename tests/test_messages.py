"""Messages and hints name only what exists: arguments, ops, functions, environment variables."""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT
from torch.distributed.tensor import DTensor

import xattn
import xattn.cache
from xattn.ops.table import OPS

# Anything with an underscore or a dot inside: an argument, a function, an attribute.
WORD = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[._][A-Za-z0-9_]+)+")
# Their texts speak of another library's arguments too.
ELSEWHERE = ("integrations", "spelling.py")


def texts(path: Path) -> Iterator[str]:
    """What a file says: its strings of several words, docstrings aside."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and " " in text and id(node) not in docstrings:
            yield text


def words(path: Path) -> set[str]:
    return {word for text in texts(path) for word in WORD.findall(text)}


def resolves(root: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(root, name):
            return False
        root = getattr(root, name)
    return True


def known_names() -> set[str]:
    """Words of one's own: arguments, features, sizes, fields of requests, members of a plugin's classes."""
    found = {"total_q", "total_k", "cos_k", "sin_k", "xattn_backends", "xattn_tables"}
    for op in OPS.values():
        vocabulary = op.vocabulary
        found |= {op.name, *inspect.signature(op.function).parameters, *vocabulary.feature_names, *vocabulary.sizes}
        found |= {field.name for field in fields(op.request)}
    for plugins in (xattn.Backend, xattn.Kernel, xattn.Capabilities, xattn.Reason):
        found |= {*dir(plugins), *getattr(plugins, "__annotations__", {})}
    return found | {"bottom_right", "top_left"}


def exists(word: str) -> bool:
    head, _, rest = word.partition(".")
    if head == "xattn":
        return resolves(xattn, rest)
    if head in ("torch", "F"):
        return resolves(torch if head == "torch" else torch.nn.functional, rest)
    if word.startswith("XATTN_"):
        return (
            f'os.environ.get("{word}"'
            in (ROOT / "xattn/dispatch/choice.py").read_text() + (ROOT / "xattn/dispatch/registry.py").read_text()
        )
    if rest:  # a method of some tensor
        return resolves(torch.Tensor, rest)
    return word in known_names() or hasattr(torch.Tensor, word) or hasattr(DTensor, word)


ROOMS = [
    path
    for room in ("ops", "dispatch", "plugin")
    for path in sorted((ROOT / "xattn" / room).rglob("*.py"))
    if not any(part in path.parts for part in ELSEWHERE)
]


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: os.fspath(path.relative_to(ROOT)))
def test_the_core_names_what_exists(path: Path) -> None:
    assert [word for word in sorted(words(path)) if not exists(word)] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: os.fspath(path.relative_to(ROOT))
)
def test_plugins_name_what_exists_of_xattn(path: Path) -> None:
    """What else they name is their vendor's."""
    own = [word for word in sorted(words(path)) if word.startswith(("xattn.", "XATTN_"))]
    assert [word for word in own if not exists(word)] == []
    for text in texts(path):
        for page in re.findall(r"docs/[a-z_/-]+\.md", text):
            assert (ROOT / page).exists(), page
        for name in re.findall(r"backend=[\"']([a-z-]+)", text):
            assert name == "auto" or name in xattn.backends(), name


def test_the_test_sees_a_name_that_does_not_exist() -> None:
    for word in ("paged_varlen_attention", "xattn.plans", "torch.nn.attention_bias", "XATTN_NONE", "mask.boolean"):
        assert not exists(word)
    for word in ("varlen_attention", "xattn.use_backend", "torch.no_grad", "XATTN_DISABLE", "mask.bool", "seqlens_k"):
        assert exists(word)
