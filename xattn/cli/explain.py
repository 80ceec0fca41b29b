"""`xattn explain`: which backend a call would get, on this machine or another, and what stops the rest."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xattn.cli.arguments import arguments_of, split
from xattn.cli.flags import WHERE, Flags, takes_flags
from xattn.cli.request import prepared_of
from xattn.cli.terminal import FAILED, err, narrow_table, out, print_json, usage_errors
from xattn.dispatch.op import Op, Prepared
from xattn.explain import Candidate, Explanation, explain_request
from xattn.ops.table import DEFAULT

# Reasons that take a line below the table, where a backend has no other: code -> what the line says.
ELSEWHERE = {"device": "For other devices", "op": "Without {op}"}


@takes_flags
def explain(
    flags: Flags,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OP NAME=VALUE", help="An op, and the arguments of its call by name.", show_default=False
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="gfx942, sm_90, ...; by default this machine's.", rich_help_panel=WHERE),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Which backend a call would get, its kernel, and what stops every other. Runs nothing, needs no such device.

    A call of attention is made of the options below. One of any op has its
    name and arguments by name:

    xattn explain apply_rotary q=2,16,8,64 k=none cos=16,32 sin=16,32

    A tensor is its sizes; :float32 after them is its dtype where that is not
    --dtype, :grad says that its gradient is wanted. A list of tensors has +
    between them. Other values: true, false, none, numbers, words, pairs as 1023,0.

    Exits with 1 where no backend can serve the call.
    """
    op, named = split(words or ())
    with usage_errors(), err().status("Asking every backend"):
        by_name = named or op is not DEFAULT
        prepared = _by_name(op, named, flags, arch) if by_name else flags.prepared(arch)
        explanation = explain_request(prepared.request, flags.choice, prepared.given)
    if json:
        print_json(explanation.as_dict())
    else:
        show(explanation, out())
    if explanation.backend is None:
        raise typer.Exit(FAILED)


def _by_name(op: Op, named: list[str], flags: Flags, arch: str | None) -> Prepared:
    flags.refuse_shape_and_features()
    arguments = arguments_of(op, named, flags.tensor_dtype)
    return prepared_of(op, arguments, flags.device, arch)


def show(explanation: Explanation, console: Console) -> None:
    console.print(Text(str(explanation.request)))
    console.print()
    if explanation.backend is None:
        console.print(Text("No backend can serve this call exactly as asked.", style="bold red"))
    else:
        console.print(Text.assemble("Backend  ", (explanation.backend, "bold green")))
        console.print(Text.assemble("Kernel   ", (explanation.kernel or "", "bold")))
    table = _candidates(explanation)
    console.print(table if table.row_count else "")
    if explanation.measured is not None:
        console.print(Text(f"Measured: {explanation.measured}", "dim"))
    for code, text in ELSEWHERE.items():
        if stopped := explanation.stopped_by(code):
            names = ", ".join(candidate.name for candidate in stopped)
            console.print(Text(f"{text.format(op=explanation.request.op)}: {names}", "dim"))
    notes = list(explanation.notes)
    unnamed = any(reason.code == "arch" for candidate in explanation.candidates for reason in candidate.reasons)
    if explanation.request.arch is None and unnamed:
        notes.append("no architecture is named; --arch says which one the device has")
    for note in notes:
        console.print(Text.assemble(("Note: ", "bold yellow"), note))


def _candidates(explanation: Explanation) -> Table:
    table = narrow_table()
    table.add_column("Backend", no_wrap=True)
    table.add_column("Serves it", no_wrap=True)
    measured = explanation.measured is not None
    if measured:
        table.add_column("Measured", justify="right", no_wrap=True)
    table.add_column("Kernel, or what stops it")
    aside = {candidate.name for code in ELSEWHERE for candidate in explanation.stopped_by(code)}
    for candidate in explanation.candidates:
        if candidate.name in aside:
            continue
        chosen = candidate.name == explanation.backend
        table.add_row(
            Text(candidate.name, style="bold green" if chosen else ""),
            _verdict(candidate, chosen),
            *([candidate.time] if measured else []),
            _why(candidate),
        )
    return table


def _verdict(candidate: Candidate, chosen: bool) -> Text:
    if candidate.reasons:
        return Text("no", style="red")
    if chosen:
        return Text("chosen", style="bold green")
    return Text("could") if candidate.asked else Text("not asked", style="dim")


def _why(candidate: Candidate) -> Text:
    if not candidate.reasons:
        return Text(candidate.kernel)
    text = Text()
    for reason in candidate.reasons:
        if text:
            text.append("\n")
        text.append(reason.code, style="bold")
        text.append(f": {reason.got}, supported: {reason.want}")
        if reason.hint:
            text.append(f"\n  {reason.hint}", style="dim")
    return text
