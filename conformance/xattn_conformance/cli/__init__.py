"""The command line `xattn-conformance`. Needs the extra `conformance`."""

from __future__ import annotations

import importlib.util
import sys

from xattn_conformance.startup import importing

# What the extra brings.
NEEDS = ("jinja2", "msgspec", "numpy", "rich", "safetensors", "typer")


def main() -> None:
    """The entry point `xattn-conformance`."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        print(f"xattn-conformance needs {', '.join(missing)}: pip install xattn-conformance", file=sys.stderr)
        raise SystemExit(2)
    with importing():
        from xattn_conformance.cli.app import app

    app(prog_name="xattn-conformance")
