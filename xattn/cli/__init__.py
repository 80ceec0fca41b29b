"""The command line. Needs the extra `cli`; the rest of xattn does not."""

from __future__ import annotations

import importlib.util
import sys

# What the extra brings. xattn.cli.plot alone needs matplotlib, but half an extra helps nobody.
NEEDS = ("typer", "rich", "matplotlib")


def main() -> None:
    """The entry point `xattn`."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"xattn's command line needs {', '.join(missing)}: pip install 'xattn[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from xattn.cli.app import app

    app(prog_name="xattn")
