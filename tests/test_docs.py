"""What the README and the documentation show is what happens."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import xattn
from xattn.dispatch.op import Op
from xattn.ops.table import OPS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]

each_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return [
        body for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S) if name == language
    ]


def test_the_call_in_the_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed in blocks(ROOT / "README.md", "")


def test_the_explanations_in_choosing_are_the_real_ones() -> None:
    code = "\n".join(block for block in blocks(DOCS / "choosing.md", "python") if ">>>" in block)
    q, cos = torch.randn(1, 8, 2, 16), torch.randn(8, 8)
    names = {"xattn": xattn, "q": q, "k": q, "v": q, "cos": cos, "sin": cos}
    test = doctest.DocTestParser().get_doctest(code, names, "choosing", None, None)
    assert doctest.DocTestRunner().run(test) == doctest.TestResults(failed=0, attempted=2)


@each_op
def test_choosing_leads_to_every_op(op: Op) -> None:
    """By a row with a link to its page, and by a call, which the next test runs."""
    section = (DOCS / "choosing.md").read_text().partition("\n## Which op\n")[2].partition("\n## ")[0]
    table, _, calls = section.partition("```python\n")
    assert f"(ops/{op.name}.md)" in table
    assert f"xattn.{op.name}(" in calls


@pytest.mark.parametrize("name", ["tutorial", "migrate", "choosing", "serving"])
def test_the_examples_of_a_page_print_what_they_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Block after block, in one namespace."""
    page = (DOCS / f"{name}.md").read_text()
    told = re.findall(r"^```python\n(?!>>>)(.*?)^```$(?:\n+```text\n(.*?)^```$)?", page, re.M | re.S)
    assert told
    names: dict[str, Any] = {}
    for code, printed in told:
        exec(code, names)
        assert capsys.readouterr().out == printed


# ---------------------------------------------------------------------------------------------------------------------
# The page of each op
# ---------------------------------------------------------------------------------------------------------------------


def page_of(op: Op) -> Path:
    return DOCS / "ops" / f"{op.name}.md"


@each_op
def test_the_page_of_an_op_has_its_signature(op: Op) -> None:
    shown = blocks(page_of(op), "python")[0].replace(f"xattn.{op.name}(", "def shown(", 1).strip()
    names: dict[str, Any] = {}
    exec(f"{shown}: ...", names)

    def parameters(function: Callable[..., Any]) -> list[tuple[object, ...]]:
        return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]

    assert parameters(names["shown"]) == parameters(op.function)


@each_op
def test_the_page_of_an_op_says_what_each_argument_means(op: Op) -> None:
    table = page_of(op).read_text().partition("\n| name |")[2].partition("\n\n")[0]
    explained = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert set(inspect.signature(op.function).parameters) <= explained


@each_op
def test_the_example_of_an_op_prints_what_it_says(op: Op, capsys: pytest.CaptureFixture[str]) -> None:
    _, example = blocks(page_of(op), "python")
    exec(example, {})
    assert [capsys.readouterr().out] == blocks(page_of(op), "text")


@each_op
def test_the_page_of_an_op_has_its_vocabulary(op: Op) -> None:
    section = page_of(op).read_text().partition("\n## Vocabulary\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.M)
    found = {kind: tuple(word for word, of in rows if of == kind) for kind in ("feature", "gradient", "size", "phase")}
    words = op.vocabulary
    assert found == {
        "feature": words.feature_names,
        "gradient": words.grads,
        "size": words.sizes,
        "phase": words.phases,
    }


def test_every_page_of_an_op_is_one_of_an_op_that_there_is() -> None:
    assert {page.stem for page in (DOCS / "ops").glob("*.md")} == set(OPS)


def test_the_page_of_the_api_has_every_public_name() -> None:
    """Ops and the classes of their kernels are put in when the site is built."""
    page = (DOCS / "api.md").read_text()
    named = set(re.findall(r"^::: xattn\.(?:\w+\.)*(\w+)$", page, re.M))
    added = {name for name in xattn.__all__ if name in OPS or re.fullmatch(r"\w+(Kernel|Request)", name)}
    assert {"{{ ops }}", "{{ kernels }}"} <= set(page.split("\n"))
    assert set(xattn.__all__) - added - {"__version__", "hookimpl"} <= named


# ---------------------------------------------------------------------------------------------------------------------
# What pages name
# ---------------------------------------------------------------------------------------------------------------------


@each_page
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, part in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if part:
            assert part in anchors(linked), f"{target}#{part}"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_files_that_architecture_names_are_there() -> None:
    """`<op>` and `<vendor>` stand for any."""
    page = (DOCS / "architecture.md").read_text()
    named = re.findall(r"`((?:xattn|plugins|conformance|tests|docs)/[\w./<>-]+)`", page)
    assert named
    for path in named:
        assert list(ROOT.glob(re.sub(r"<\w+>", "*", path))), path


def test_the_makefile_has_the_commands_that_the_pages_name() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.M)}
    assert {"demo", "test"} <= named <= targets
