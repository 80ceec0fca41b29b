"""`xattn info`: what is installed here and what each backend declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import xattn
from xattn.cli import capabilities
from xattn.cli.capabilities import Block
from xattn.cli.terminal import err, narrow_table, out, print_json
from xattn.dispatch.op import Op
from xattn.dispatch.registry import registry
from xattn.ops.table import OPS

# A capability block with its number in the tables and its backend.
Numbered = tuple[int, Mapping[str, Any], Block]


def info(json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """What is installed: versions, devices, plugins and their failures, backends and what they serve of each op."""
    with err().status("Asking every backend what it finds"):
        document = report()
    if json:
        print_json(document)
    else:
        show(document, out())


def report() -> dict[str, Any]:
    """`xattn.info()`, and each backend's capability blocks under "capabilities"."""
    document = xattn.info()
    for backend in document["backends"]:
        backend["capabilities"] = capabilities.blocks_of(registry().entries[backend["name"]])
    return document


def show(document: Mapping[str, Any], console: Console) -> None:
    blocks = list(_numbered(document))
    console.print(_versions(document))
    tables = {
        "Plugins": _plugins(document),
        "Backends": _backends(blocks),
        "How they were checked": _checked(blocks),
        **({"Tables of measured times": _tables(document)} if document["tables"] else {}),
        **{f"Features of {op.name}": _features(op, blocks) for op in OPS.values()},
    }
    for title, table in tables.items():
        console.print("", Text(title, "bold"), table, sep="\n", end="")
    if says := _says(document):
        # In whole lines, to be copied: a command may be among them.
        console.print("", Text("What backends say", "bold"), *says, sep="\n", soft_wrap=True)
    for problem in document["problems"]:
        console.print(Text.assemble(("Problem: ", "bold red"), (problem, "red")), soft_wrap=True)


def _numbered(document: Mapping[str, Any]) -> Iterator[Numbered]:
    blocks = ((backend, block) for backend in document["backends"] for block in backend["capabilities"])
    for number, (backend, block) in enumerate(blocks, start=1):
        yield number, backend, block


def _versions(document: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    grid.add_row("xattn", f"{document['xattn']}, plugin API {document['plugin_api']}")
    grid.add_row("python", document["python"])
    grid.add_row("torch", document["torch"])
    grid.add_row("devices", "\n".join(document["devices"]))
    for name, value in document["environment"].items():
        grid.add_row(name, Text(value if isinstance(value, str) else ", ".join(value) or "not set"))
    return grid


def _plugins(document: Mapping[str, Any]) -> Table:
    table = narrow_table()
    table.add_column("Plugin", no_wrap=True)
    table.add_column("From")
    table.add_column("Module")
    table.add_column("Backends")
    for plugin in document["plugins"]:
        brought = Text(", ".join(plugin["backends"]))
        for failure in plugin["failures"]:
            brought.append(("\n" if brought else "") + failure, style="red")
        table.add_row(
            Text(plugin["name"], style="red" if plugin["failures"] else ""),
            Text(f"{plugin['distribution']} {plugin['version']}"),
            Text(plugin["module"]),
            brought,
        )
    return table


def _tables(document: Mapping[str, Any]) -> Table:
    table = narrow_table()
    table.add_column("From", no_wrap=True)
    table.add_column("Measured")
    table.add_column("Counts")
    for each in document["tables"]:
        table.add_row(Text(each["source"]), Text(_what_was_measured(each)), _counts(each))
    return table


def _what_was_measured(table: Mapping[str, Any]) -> str:
    if table["problem"]:
        return str(table["file"])
    days = " to ".join(dict.fromkeys(when[:10] for when in (table["from"], table["to"])))
    what = f"{table['kinds']} kinds of call, {table['mode']} time of {', '.join(table['backends'])}"
    return f"{what}, on {table['card']}, {days}\n{table['file']}"


def _counts(table: Mapping[str, Any]) -> Text:
    if table["problem"]:
        return Text("no, it cannot be read", "red")
    if table["unused"]:
        return Text(f"no: {table['unused']}", "yellow")
    if table["stale"]:
        but = "; ".join(f"{name}: {what}" for name, what in table["stale"].items())
        return Text(f"but for {but}", "yellow")
    return Text("yes", "green")


def _backends(blocks: list[Numbered]) -> Table:
    """One row a backend and op, with a line for each capability block, numbered as in the tables of features."""
    table = narrow_table()
    table.add_column("Backend", no_wrap=True)
    table.add_column("Op", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("Device", no_wrap=True)
    table.add_column("Dtypes")
    table.add_column("Sizes")
    shown: tuple[str, str] | None = None
    for number, backend, block in blocks:
        of = backend["name"], block["op"]
        name, op = of if of != shown else ("", "")
        shown = of
        table.add_row(
            Text(name, style="yellow" if backend["disabled_by"] else ""),
            Text(_in_lines(op)),
            str(number),
            Text("\n".join(capabilities.place(block))),
            Text(" ".join(capabilities.dtypes(block))),
            Text("\n".join(capabilities.sizes(block)) or "any"),
        )
    return table


def _in_lines(op: str) -> str:
    """The name, with its last word on a line of its own where it would take the room of the other columns."""
    head, _, last = op.rpartition("_")
    return op if len(op) <= 18 else f"{head}_\n{last}"


def _checked(blocks: list[Numbered]) -> Table:
    """How each block was checked; what several say alike, once."""
    numbers: dict[str, list[str]] = {}
    for number, _, block in blocks:
        numbers.setdefault(block["checked"], []).append(str(number))
    table = narrow_table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for checked, of in numbers.items():
        table.add_row(", ".join(of), Text(checked))
    return table


def _says(document: Mapping[str, Any]) -> list[Text]:
    """Each backend's own account, a line each; what several say alike, once."""
    said: dict[str, list[str]] = {}
    for backend in document["backends"]:
        lines = [f"{key}: {value}" for key, value in backend["info"].items()]
        lines += [f"disabled by {backend['disabled_by']}"] if backend["disabled_by"] else []
        for line in lines:
            said.setdefault(line, []).append(backend["name"])
    return [Text.assemble((", ".join(names), "bold"), "  ", line) for line, names in said.items()]


def _features(op: Op, blocks: list[Numbered]) -> Table:
    """One row a feature, one column a capability block of the op, by number."""
    blocks = [each for each in blocks if each[2]["op"] == op.name]
    table = narrow_table()
    # The line between two columns is room enough for fifteen of them.
    table.padding = 0
    table.add_column("", no_wrap=True)
    for number, _, _ in blocks:
        table.add_column(str(number), justify="center")
    for label, served in capabilities.rows(op, [block for _, _, block in blocks]):
        table.add_row(label, *(Text("✓", "green") if each else Text("-", "dim") for each in served))
    return table
