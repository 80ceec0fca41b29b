"""docs/add-an-op.md quotes the files of `merge_attention`: they must be what it shows."""

from __future__ import annotations

import re

from support import ROOT

PAGE = (ROOT / "docs" / "add-an-op.md").read_text()
PATH = re.compile(r"`((?:xattn|plugins|conformance|tests|docs)/[\w./<>-]+)`")


def test_what_the_guide_quotes_is_in_a_file_that_it_names_before() -> None:
    quotes = list(re.finditer(r"^```(?:python|toml)\n(.*?)^```$", PAGE, re.M | re.S))
    assert len(quotes) >= 12
    for quote in quotes:
        named = [ROOT / path for path in PATH.findall(PAGE[: quote.start()])]
        assert any(quote[1].strip("\n") in path.read_text() for path in named if path.is_file()), quote[1]


def test_the_files_that_the_guide_names_are_there() -> None:
    named = set(PATH.findall(PAGE))
    assert len(named) >= 15
    for path in named:
        for op in ("merge_attention", "attention", "apply_rotary"):
            assert (ROOT / path.replace("<op>", op)).exists(), path


def test_every_file_of_the_op_is_named_or_in_a_folder_that_is() -> None:
    rooms = [path.relative_to(ROOT) for path in ROOT.glob("*/**/merge_attention*")]
    kept = [path for path in rooms if path.parts[0] not in ("build", ".venv") and path.suffix != ".pyc"]
    assert {str(path).replace("merge_attention", "<op>") for path in kept} <= {
        "xattn/ops/<op>",
        "plugins/xattn_reference/<op>.py",
        "conformance/xattn_conformance/ops/<op>",
        "docs/ops/<op>.md",
        "tests/ops/<op>",
        "tests/ops/<op>/test_<op>.py",
    }
