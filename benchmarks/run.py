"""Measure what xattn promises about speed, memory and copies: `python benchmarks/run.py [--quick] [--only NAME]`.

Prints a table and writes bench.json and bench.png. Asserts nothing: exits with 0 unless something crashes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

# Read when torch is loaded: its profiler, which counts memory here, would write a line at each start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import compat
import copies
import decode
import door
import features
import hopper
import huggingface
import indexer
import latent
import overhead
import paged
import quantised
import rotary
import torch
import varlen
import window
from common import Row
from plot import plot
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xattn.plugin.devices import card

SUBJECTS = {
    "overhead": overhead,
    "copies": copies,
    "window": window,
    "features": features,
    "decode": decode,
    "paged": paged,
    "quantised": quantised,
    "latent": latent,
    "varlen": varlen,
    "door": door,
    "compat": compat,
    "rotary": rotary,
    "huggingface": huggingface,
    "indexer": indexer,
    "hopper": hopper,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), metavar="DIR", help="[%(default)s]")
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="a subject; repeat for several")
    parser.add_argument("--quick", action="store_true", help="less of everything: to see that it runs, not to quote")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in arguments.only or SUBJECTS:
        start = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        rows += SUBJECTS[name].rows(arguments.quick)
        print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)

    devices = [card(torch.device(kind)) for kind in ("cpu", *(["cuda"] if torch.cuda.is_available() else []))]
    where = f"torch {torch.__version__}, Python {platform.python_version()}, {', '.join(devices)}"
    if arguments.quick:
        where += "; --quick: not to quote"
    _print(rows, where)
    arguments.out.mkdir(parents=True, exist_ok=True)
    document = {"where": where, "quick": arguments.quick, "rows": [{**asdict(row), "met": row.met} for row in rows]}
    (arguments.out / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    plot(rows, f"{where}. p50 of candidates alternating in one process, 1 thread.", arguments.out / "bench.png")
    print(f"wrote {arguments.out / 'bench.json'} and bench.png", file=sys.stderr)


def _print(rows: list[Row], where: str) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("What")
    table.add_column("Bar")
    table.add_column("Measured")
    table.add_column("Met?")
    verdicts = {True: Text("yes", "green"), False: Text("no", "bold red"), None: Text("-", "dim")}
    for row in rows:
        table.add_row(Text(row.what), Text(row.bar), Text(row.measured), verdicts[row.met])
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(f"{where}. Candidates alternate in one process, one thread; medians.", "dim"))


if __name__ == "__main__":
    main()
