"""The command line. Needs the extra `cli`; the rest of xattn does not."""

from __future__ import annotations

import importlib.util
import sys

# What every command needs of the extra; matplotlib is for the picture of `xattn bench --out` alone.
NEEDS = ("typer", "rich")


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
