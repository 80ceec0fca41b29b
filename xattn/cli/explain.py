"""`xattn explain`: which backend a call would get, on this machine or another, and what stops the rest."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xattn.cli.call import Call, takes_call
from xattn.cli.terminal import FAILED, err, out, print_json, usage_errors
from xattn.explain import Candidate, Explanation, explain_request
from xattn.plugin.devices import device_and_arch


@takes_call
def explain(
    call: Call,
    arch: Annotated[
        str | None,
        typer.Option(help="gfx942, sm_90, ...; by default this machine's.", rich_help_panel="Where it runs"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Which backend a call would get, its kernel, and what stops every other. Runs nothing, needs no such device.

    Exits with 1 where no backend can serve the call.
    """
    with usage_errors(), err().status("Asking every backend"):
        request = call.request(arch or present_arch(call.device))
        explanation = explain_request(request, call.choice)
    if json:
        print_json(explanation.as_dict())
    else:
        show(explanation, out())
    if explanation.backend is None:
        raise typer.Exit(FAILED)


def present_arch(device: str) -> str | None:
    """The architecture of this machine's first device of that name, if it has one."""
    if not torch.cuda.is_available():
        return None
    name, arch = device_and_arch(torch.device("cuda"))
    return arch if name == device else None


def show(explanation: Explanation, console: Console) -> None:
    console.print(Text(str(explanation.request)))
    console.print()
    if explanation.backend is None:
        console.print(Text("No backend can serve this call exactly as asked.", style="bold red"))
    else:
        console.print(Text.assemble("Backend  ", (explanation.backend, "bold green")))
        console.print(Text.assemble("Kernel   ", (explanation.kernel or "", "bold")))
    console.print(_candidates(explanation))
    notes = list(explanation.notes)
    unnamed = any(reason.code == "arch" for candidate in explanation.candidates for reason in candidate.reasons)
    if explanation.request.arch is None and unnamed:
        notes.append("no architecture is named; --arch says which one the device has")
    for note in notes:
        console.print(Text.assemble(("Note: ", "bold yellow"), note))


def _candidates(explanation: Explanation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Backend", no_wrap=True)
    table.add_column("Serves it", no_wrap=True)
    table.add_column("Kernel, or what stops it")
    for candidate in explanation.candidates:
        chosen = candidate.name == explanation.backend
        table.add_row(
            Text(candidate.name, style="bold green" if chosen else ""),
            _verdict(candidate, chosen),
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
