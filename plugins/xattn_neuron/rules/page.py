"""docs/neuron-rules.md: every rule.

python -m xattn_neuron.rules.page > docs/neuron-rules.md
"""

from __future__ import annotations

from collections.abc import Iterable

from xattn_neuron.rules import installing, legacy, nki, not_callable_yet
from xattn_neuron.rules.rule import Rule

_PARTS = {
    "Installing and importing": installing,
    "The NKI library: attention_cte and attention_bwd (`nki`)": nki,
    "flash_fwd and flash_attn_bwd (`nki-legacy`)": legacy,
    "Of calls that xattn does not have yet": not_callable_yet,
}

_PAGE = """# What is known of AWS's kernels and packages

Made by `python -m xattn_neuron.rules.page`; not edited by hand.

Each line is a defect, a limit or a trap of what AWS publishes, the releases that have it, and what xattn does about it.
A test names each that a call can meet.

{parts}
"""


def page() -> str:
    parts = [f"## {title}\n\n{_table(part.RULES)}" for title, part in _PARTS.items()]
    return _PAGE.format(parts="\n\n".join(parts))


def _table(rules: Iterable[Rule]) -> str:
    lines = ["| rule | releases | what happens | what xattn does |", "| --- | --- | --- | --- |"]
    for rule in rules:
        releases = f"{rule.package} {rule.versions}" if rule.versions else "all that were read"
        cells = (f"[{rule.name}]({rule.link})", releases, rule.what, rule.guard)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
