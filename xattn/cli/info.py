"""`xattn info`: what is installed here and what each backend declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import xattn
from xattn.cli.terminal import err, out, print_json
from xattn.dispatch.op import Op
from xattn.dispatch.registry import registry
from xattn.ops.table import OPS
from xattn.plugin import Capabilities, Kernel, dtype_name


def info(json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """What is installed: versions, devices, plugins and their failures, backends and what they serve."""
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
        kernels = registry().entries[backend["name"]].backend.kernels
        backend["capabilities"] = [_as_data(kernel, block) for kernel in kernels for block in kernel.capabilities]
    return document


def _as_data(kernel: Kernel[Any], block: Capabilities[Any]) -> dict[str, Any]:
    vocabulary = OPS[kernel.op].vocabulary
    return {
        "op": kernel.op,
        "device": block.device,
        "archs": None if block.archs is None else sorted(block.archs),
        "dtypes": sorted(map(dtype_name, block.dtypes)),
        "sizes": {name: list(bound) for name, bound in block.sizes.items()},
        "features": [feature for feature in vocabulary.feature_names if feature in block.features],
        "grads": [grad for grad in vocabulary.grads if grad in block.grads],
        "priority": dict(block.priority),
        "fallback": block.fallback,
        "checked": block.checked,
    }


def show(document: Mapping[str, Any], console: Console) -> None:
    console.print(_versions(document))
    console.print(_plugins(document))
    console.print(_backends(document))
    for line in _says(document):
        console.print(line, soft_wrap=True)
    console.print()
    for table in _features(document):
        console.print(table)
    for problem in document["problems"]:
        console.print(Text.assemble(("Problem: ", "bold red"), (problem, "red")), soft_wrap=True)


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
    table = Table(title="Plugins", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
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


def _backends(document: Mapping[str, Any]) -> Table:
    """One row a block, numbered as the columns of the features are."""
    table = Table(title="Backends", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("Backend", no_wrap=True)
    for column in ("Op", "Device", "Dtypes", "Sizes", "Checked"):
        table.add_column(column)
    for number, (backend, block) in enumerate(_blocks(document), start=1):
        archs = "" if block["archs"] is None else "\n" + "\n".join(block["archs"])
        table.add_row(
            str(number),
            Text(backend["name"], style="yellow" if backend["disabled_by"] else ""),
            Text(block["op"]),
            Text(block["device"] + archs),
            Text("\n".join(block["dtypes"])),
            Text("\n".join(f"{name} {_span(*bound)}" for name, bound in block["sizes"].items()) or "any"),
            Text(block["checked"]),
        )
    return table


def _blocks(document: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(backend, block) for backend in document["backends"] for block in backend["capabilities"]]


def _says(document: Mapping[str, Any]) -> list[Text]:
    """Each backend's own account, a line each; what several say alike, once."""
    said: dict[str, list[str]] = {}
    for backend in document["backends"]:
        lines = [f"{key}: {value}" for key, value in backend["info"].items()]
        lines += [f"disabled by {backend['disabled_by']}"] if backend["disabled_by"] else []
        for line in lines:
            said.setdefault(line, []).append(backend["name"])
    return [Text.assemble((", ".join(names), "bold"), "  ", line) for line, names in said.items()]


def _span(smallest: int, largest: int | None, multiple: int) -> str:
    span = f"{smallest} and up" if largest is None else f"{smallest} to {largest}"
    return "any" if span == "1 and up" and multiple == 1 else span + (f", by {multiple}" if multiple > 1 else "")


def _features(document: Mapping[str, Any]) -> list[Table]:
    """A table an op: one row a feature, one column a block, by number."""
    numbered = list(enumerate((block for _, block in _blocks(document)), start=1))
    return [_features_of(op, [each for each in numbered if each[1]["op"] == op.name]) for op in OPS.values()]


def _features_of(op: Op, blocks: list[tuple[int, Mapping[str, Any]]]) -> Table:
    table = Table(title=f"Features of {op.name}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for number, _ in blocks:
        table.add_column(str(number), justify="center")
    rows = [(name, "features", name) for name in op.vocabulary.feature_names]
    rows += [
        (f"gradients of {', '.join(name) if set(name) <= set('qkv') else name}", "grads", name)
        for name in op.vocabulary.grads
    ]
    for label, kind, name in rows:
        cells = (Text("yes", "green") if name in block[kind] else Text("-", "dim") for _, block in blocks)
        table.add_row(label, *cells)
    return table
