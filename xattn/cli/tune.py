"""`xattn tune`: measures calls on every backend that can serve them, and writes down their times for `auto`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from xattn.cli import values
from xattn.cli.arguments import arguments_of, split
from xattn.cli.request import prepared_of, present, usual_dtype
from xattn.cli.terminal import FAILED, err, out, print_json, usage_errors
from xattn.cli.units import duration
from xattn.dispatch.tables import places
from xattn.dispatch.tables.environment import here
from xattn.dispatch.tables.format import Row, Table, TableError
from xattn.errors import InvalidArgumentError
from xattn.measure.timing import Mode, clock
from xattn.tune import model, record, storing
from xattn.tune.measuring import Call
from xattn.tune.running import Tuned, run

CALLS, HOW = "What to measure", "How"
GRIDS = Path(__file__).parents[1] / "tune" / "grids"


def tune(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OP NAME=VALUE",
            help="One call, as xattn explain takes it.",
            show_default=False,
        ),
    ] = None,
    calls: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Calls in such words, one a line. XATTN_RECORD=FILE writes those of a run there.",
            rich_help_panel=CALLS,
        ),
    ] = None,
    model_at: Annotated[
        Path | None,
        typer.Option("--model", metavar="PATH", help="A model's config.json, or its folder.", rich_help_panel=CALLS),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,N,...", help="Batch sizes, with --model.", rich_help_panel=CALLS)
    ] = "1,8",
    seqlen: Annotated[
        str,
        typer.Option(metavar="N,N,...", help="Lengths of prompts and caches, with --model.", rich_help_panel=CALLS),
    ] = "1024,4096",
    train: Annotated[
        bool, typer.Option("--train", help="Forward and backward, with --model.", rich_help_panel=CALLS)
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of tensors that name none; by default float32 on the CPU, bfloat16 elsewhere.",
            rich_help_panel=CALLS,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or rocm; by default the GPU, if there is one.", rich_help_panel=HOW)
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="Time of the GPU alone, as in a CUDA graph, or from call to call, with what the host takes.",
            rich_help_panel=HOW,
        ),
    ] = "device",
    seconds: Annotated[
        float, typer.Option(min=0.001, help="For each call, about, after the first.", rich_help_panel=HOW)
    ] = 0.5,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The table; by default a file of this environment's where auto finds it.",
            rich_help_panel=HOW,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure what the table has too.", rich_help_panel=HOW)
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure calls on every backend that can serve them; auto then takes the fastest.

    Without a call, --calls or --model it measures a grid of usual ones. Each
    call is written down when it was measured: stop a run when you like, and
    the next one goes on from there. Processes that start afterwards use the
    table; xattn explain and xattn info show what it says.

    Exits with 1 where a kernel failed, or the table could not be written.
    """
    with usage_errors():
        name = device or _usual_device()
        where = present(name)
        environment = here(name)
        assert environment is not None  # it is present
        tensor_dtype = usual_dtype(name) if dtype is None else values.dtype(dtype, "--dtype")
        sizes = values.sizes(batch, "--batch"), values.sizes(seqlen, "--seqlen")
        lines = [*_given(words or (), calls), *_of_model(model_at, *sizes, train)] or grid(name)
        found = described(lines, name, tensor_dtype)
        timed: Mode = "eager" if where.type == "cpu" else mode
        empty = Table(environment, timed, clock(where, timed), ())
        path = out_file or _default_file(f"{environment.key}-{timed}.json")
        try:
            before = storing.stored(path, environment, timed)
        except (TableError, storing.OtherTableError) as error:
            raise typer.BadParameter(str(error), param_hint="--out") from None
        with _Bar(len(found)) as told:
            tuned = run(found, path, empty, None if again else before, where, seconds, told)
    if json:
        print_json(tuned.as_dict())
    else:
        _show(tuned, out())
    if tuned.failed or tuned.stopped:
        raise typer.Exit(FAILED)


def _usual_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if torch.version.hip is None else "rocm"


def _given(words: Sequence[str], file: Path | None) -> Iterator[str]:
    if words:
        yield " ".join(words)
    if file is not None:
        try:
            yield from record.read(file.read_text().splitlines())
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{file}: {error}", param_hint="--calls") from None


def _of_model(path: Path | None, batches: Sequence[int], lengths: Sequence[int], train: bool) -> Sequence[str]:
    if path is None:
        return ()
    try:
        return model.calls_of(path, batches, lengths, train)
    except model.ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from None


def grid(device: str) -> list[str]:
    """The usual calls of a device, in words."""
    return record.read((GRIDS / ("cpu.txt" if device == "cpu" else "gpu.txt")).read_text().splitlines())


def described(lines: Sequence[str], device: str, dtype: torch.dtype) -> list[Call]:
    """The calls, of each kind the first."""
    found: dict[Any, Call] = {}
    for line in lines:
        try:
            op, words = split(line.split())
            arguments = arguments_of(op, words, dtype)
            call = Call(line, op, arguments, prepared_of(op, arguments, device, None))
        except (typer.BadParameter, InvalidArgumentError) as error:
            text = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
            raise typer.BadParameter(f"{text}\nin the call: {line}") from None
        found.setdefault(call.kind, call)
    return list(found.values())


def _default_file(name: str) -> Path:
    place = places.place()
    if place is None:
        why = "XATTN_TABLES is off" if places.setting() else "this user has no home folder"
        raise typer.BadParameter(f"missing: {why}, so there is no place for tables", param_hint="--out")
    return place if place.suffix == ".json" and not place.is_dir() else place / name


class _Bar:
    """A line for each call that was measured, and a bar below, on stderr."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("{task.completed} of {task.total}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("{task.description}"), console=err(), transient=True)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begins(self, call: Call) -> None:
        self._progress.update(self._task, description=call.op.name)

    def ends(self, row: Row | None) -> None:
        if row is not None:
            times = sorted(row.times.items(), key=lambda each: each[1].p50_us)
            text = ", ".join(f"{name} {duration(time.p50_us)}" for name, time in times)
            self._progress.console.print(Text(row.call, "dim"), Text(f"    {text}"), sep="\n")
        self._progress.advance(self._task)


def _show(tuned: Tuned, console: Console) -> None:
    console.print(Text(f"{_kinds(len(tuned.rows))} measured" + (f", {tuned.kept} there already" if tuned.kept else "")))
    if tuned.rows:
        changed = sum(gain > 1 for gain in tuned.gains)
        how = f"{tuned.mean_gain:.2f}x as fast, in the mean over all"
        console.print(Text(f"{changed} of them by another backend than by priority: {how}"))
    for text in tuned.unserved:
        console.print(Text(f"No backend can serve: {text}", "yellow"), soft_wrap=True)
    for text in tuned.failed:
        console.print(Text.assemble(("Failed: ", "bold red"), text), soft_wrap=True)
    if tuned.stopped:
        console.print(Text.assemble(("Stopped: ", "bold red"), tuned.stopped), soft_wrap=True)
    if tuned.rows or tuned.kept:
        console.print(Text(f"Table: {tuned.file}"), soft_wrap=True)


def _kinds(count: int) -> str:
    return "1 kind of call" if count == 1 else f"{count} kinds of call"
