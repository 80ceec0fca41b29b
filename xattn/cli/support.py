"""docs/support.md: what xattn's own backends serve of each op.

python -m xattn.cli.support > docs/support.md
"""

from __future__ import annotations

from xattn.cli import capabilities
from xattn.cli.capabilities import Block
from xattn.dispatch.op import Op
from xattn.dispatch.registry import registry
from xattn.ops.table import OPS

# A capability block with the name of its backend.
Named = tuple[str, Block]

_PAGE = """# What each backend serves

Made by `python -m xattn.cli.support`; not edited by hand.

Each column is a block of what a backend declares: for one op, on one device or some architectures of it. What is not
declared is rejected, with a reason; the reason's code is the name that a row has here. Beyond these tables a kernel may
have limits of its own, on combinations of features or on the vendor's package that is installed: `xattn explain` says
what stops a call.

{ops}
"""


def page() -> str:
    own = {plugin.name for plugin in registry().plugins if plugin.distribution == "xattn"}
    entries = [entry for entry in registry().entries.values() if entry.plugin in own]
    named = [(entry.name, block) for entry in entries for block in capabilities.blocks_of(entry)]
    return _PAGE.format(ops="\n\n".join(_section(op, named) for op in OPS.values()))


def _section(op: Op, named: list[Named]) -> str:
    named = [(name, block) for name, block in named if block["op"] == op.name]
    columns = _columns(named)
    blocks = [block for _, block in named]
    declared = [
        ("dtypes", [" ".join(capabilities.dtypes(block)) for block in blocks]),
        ("sizes", ["; ".join(capabilities.sizes(block)) or "any" for block in blocks]),
    ]
    served = [(label, ["yes" if each else "" for each in has]) for label, has in capabilities.rows(op, blocks)]
    writes = f"Writes to {', '.join(sorted(op.writes))}.\n\n" if op.writes else ""
    checked = "\n".join(f"- {column}: {block['checked']}" for column, (_, block) in zip(columns, named, strict=True))
    return f"## {op.name}\n\n{writes}{_table(columns, declared + served)}\n\nHow they were checked:\n\n{checked}"


def _columns(named: list[Named]) -> list[str]:
    """Backend and place of each block, with the kernel's class where a backend has several kernels for one place."""
    columns = [f"`{name}` {' '.join(capabilities.place(block))}" for name, block in named]
    kernels = [block["kernel"] for _, block in named]
    pairs = zip(columns, kernels, strict=True)
    return [column if columns.count(column) == 1 else f"{column}, {kernel}" for column, kernel in pairs]


def _table(columns: list[str], rows: list[tuple[str, list[str]]]) -> str:
    head = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    return "\n".join([*head, *(f"| {label} | {' | '.join(cells)} |" for label, cells in rows)])


if __name__ == "__main__":
    print(page(), end="")
