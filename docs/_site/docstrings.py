"""xattn's docstrings as Markdown: `name: what it is`, a line each with indented continuations, becomes a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"^(\w+(?:, \w+)*): +(.*(?:\n {2,}\S.*)*)$", re.M)


class Lists(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """The text with its entries as items; what is no entry stays as it is."""
    return re.sub(r"(?:^" + _ENTRY.pattern[1:-1] + r"\n?)+", lambda found: _items(found[0]), text, flags=re.M)


def _items(entries: str) -> str:
    items = (f"- **{found[1]}**: {' '.join(found[2].split())}" for found in _ENTRY.finditer(entries))
    return "\n" + "\n".join(items) + "\n"
