"""docs/support.md is what the plugins of this repository declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT, Load, backend_source, stranger

import xattn
from xattn.cli.support import page
from xattn.ops.table import OPS

MADE_BY = "python -m xattn.cli.support > docs/support.md"


def test_the_page_is_what_the_backends_declare() -> None:
    assert (ROOT / "docs/support.md").read_text() == page(), MADE_BY


def test_every_op_has_its_table_and_every_backend_its_column() -> None:
    text = page()
    assert re.findall(r"^## (\w+)$", text, re.M) == list(OPS)
    assert {name for line in re.findall(r"^\| \| .*$", text, re.M) for name in re.findall("`([^`]+)`", line)} == set(
        xattn.backends()
    )
    for section, op in zip(text.split("\n## ")[1:], OPS.values(), strict=True):
        rows = re.findall(r"^\| (\w+) \|", section, re.M)
        assert rows == [
            "dtypes",
            "sizes",
            *op.vocabulary.feature_names,
            *(f"grad_{name}" for name in op.vocabulary.grads),
        ]


def test_strangers_are_not_on_it(strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-acme", backend_source("acme", 1.0)))
    assert "acme" not in page()
    assert "`reference` any" in page()


@pytest.mark.parametrize("disabled", [["reference"]])
def test_it_does_not_depend_on_what_is_disabled(disabled: list[str], load: Load) -> None:
    load([])
    before = page()
    load([], disabled)
    assert page() == before
