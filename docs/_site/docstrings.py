"""xattn's docstrings as Markdown: `name: what it is`, a line each with indented continuations, becomes a list. And its
signatures as Python shows them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"(\w+(?:, \w+)*): +(.*)")


class Lists(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)
        # Which `xattn.ops.shared.spelling.without_unknown` leaves out.
        if isinstance(obj, griffe.Function) and "unknown" in obj.parameters:
            del obj.parameters["unknown"]


def listed(text: str) -> str:
    """The text with its entries as items; what is no entry stays as it is."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        entry = _ENTRY.match(line)
        continued = inside and line.startswith(" ")
        if (entry is not None) != inside and not continued:
            lines.append("")  # Markdown wants a blank line before a list and after it
        if entry is not None:
            lines.append(f"- **{entry[1]}**: {entry[2]}")
        else:
            lines.append("  " + line.strip() if continued else line)
        inside = entry is not None or continued
    return "\n".join(lines)
