"""What the README and the documentation show is what happens."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

import xattn
from xattn.ops.attention.call import Arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return [
        body for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S) if name == language
    ]


def test_the_call_in_the_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed in blocks(ROOT / "README.md", "")


def test_the_explanation_in_choosing_is_the_real_one() -> None:
    (code,) = (block for block in blocks(ROOT / "docs/choosing.md", "python") if ">>>" in block)
    q = torch.randn(1, 8, 2, 16)
    test = doctest.DocTestParser().get_doctest(code, {"xattn": xattn, "q": q, "k": q, "v": q}, "choosing", None, None)
    assert doctest.DocTestRunner().run(test) == doctest.TestResults(failed=0, attempted=1)


def test_the_contract_names_every_argument() -> None:
    text = (ROOT / "docs/contract.md").read_text()
    named = set(re.findall(r"`(\w+)`", text)) | set(
        re.findall(r"(\w+)=", blocks(ROOT / "docs/contract.md", "python")[0])
    )
    arguments = set(xattn.attention.__kwdefaults__)
    assert arguments <= named
    assert arguments == {*Arguments.__annotations__, "return_lse"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_makefile_has_the_commands_that_the_pages_name() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.M)}
    assert {"demo", "test"} <= named <= targets
