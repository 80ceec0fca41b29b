"""docs/families.md: what each family of models does in each way of use, by xattn beside eager attention.

make families              finds it all anew, some minutes, and fails where the page says something else
make families CHECK=       writes the page
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
from families.judge import FURTHER, TOLERANCE, Verdict, judge
from families.models import FAMILIES, Family
from families.scenarios import SCENARIOS

from xattn.integrations.transformers import register

PAGE = Path(__file__).parents[2] / "docs" / "families.md"

TEXT = """# Families of models in transformers

Made by `make families CHECK=`; not edited by hand. `make families` finds it all anew and fails where this page says
something else; CI runs it.

{made}

Each row is a family: a small model of it with random weights, those of queries and keys enlarged, so that a mask, a
window, a softcap, a sink or a scale that got lost moves the outputs; BERT has real ones. Windows and chunks are 4
tokens of 12. Each column is a way of use. **=** means: in float32 the tokens are those of transformers' eager
attention, and outputs, logits or gradients differ by {tolerance:.0e} of the largest at most; in bfloat16, where the
column has it, they are no more than {further} times as far from float32's as eager attention's. A number leads to a
note below: refused by xattn, with the reason, or not to be had in transformers, whoever attends. A dash: there is no
such thing for the family.

{table}

{notes}

| column | what is done | bfloat16 too |
|---|---|---|
{columns}

What is compared with something else than eager attention: packed sequences and continuous batching with each
sequence alone, since packed ones see each other in some families by eager attention; Falcon with ALiBi with a formula
in float64, since eager attention adds the slopes twice; the quantised cache by how far it is from the cache that it
rounds.
"""


def row(family: Family) -> dict[str, Verdict]:
    """By the scenarios' labels."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.ERROR)
    register()
    begun = time.monotonic()
    found = {each.label: judge(family, each) for each in SCENARIOS if family.kind in each.kinds}
    print(f"{family.label}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return found


def page(rows: list[dict[str, Verdict]]) -> str:
    notes: dict[str, int] = {}

    def cell(verdict: Verdict | None) -> str:
        if verdict is None:
            return "-"
        if verdict.kind == "equal":
            return "="
        who = {"refused": "Refused: ", "stock": "Not in transformers: ", "fault": "**Fault**: "}[verdict.kind]
        return f"[{notes.setdefault(who + verdict.why, len(notes) + 1)}](#notes)"

    labels = [each.label for each in SCENARIOS]
    lines = [f"| | {' | '.join(labels)} |", "|---|" + ":-:|" * len(labels)]
    for family, verdicts in zip(FAMILIES, rows, strict=True):
        caches = {"none": "", "all": " (all layers slide)", "some": " (some layers slide)"}[family.windows]
        lines.append(f"| {family.label}{caches} | {' | '.join(cell(verdicts.get(label)) for label in labels)} |")
    listed = [f"{number}. {note}" for note, number in notes.items()]
    columns = [f"| {each.label} | {each.means} | {'yes' if each.half else 'no'} |" for each in SCENARIOS]
    return TEXT.format(
        made=f"With transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}, on a CPU.",
        table="\n".join(lines),
        notes="## Notes\n\n" + "\n".join(listed),
        columns="\n".join(columns),
        tolerance=TOLERANCE,
        further=FURTHER,
    )


def same(one: str, other: str) -> bool:
    """But for the line that says what it was made with."""

    def kept(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("With transformers ")]

    return kept(one) == kept(other)
