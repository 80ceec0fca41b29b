"""The tests of what changed, as many as fit into half a minute: `make quick`.

What changed is what differs from the commit in which this branch left main, committed or not. The rooms say what its
tests are: each line of ROOMS is a file, or a folder with all below it, and the tests of it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

# Of these a test that had begun may take what is left of half a minute.
SECONDS = 24
# What takes seconds a test runs last.
SLOW = ("compile", "traced", "graph", "symbolic", "properties", "packaging", "conformance", "process")

ROOT = Path(__file__).resolve().parents[1]

# The first that fits counts. "{}" is the name of the folder below.
ROOMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("xattn/ops/shared", ("tests/ops",)),
    ("xattn/ops/{}", ("tests/ops/{}", "tests/ops")),
    ("xattn/dispatch", ("tests/dispatch", "tests/ops/test_every_op.py")),
    ("xattn/plugin", ("tests/plugin", "tests/test_architecture.py")),
    ("xattn/cli", ("tests/cli",)),
    ("xattn/info.py", ("tests/cli", "tests/plugin/test_loading.py")),
    ("xattn/integrations", ("tests/integrations", "tests/families")),
    ("xattn/measure", ("tests/test_measure.py",)),
    ("xattn", ("tests/ops/test_every_op.py", "tests/test_architecture.py")),
    ("plugins/xattn_sdpa", ("tests/plugins/sdpa",)),
    ("plugins/xattn_reference", ("tests/plugins/reference",)),
    ("plugins/xattn_rocm", ("tests/rocm",)),
    ("plugins/xattn_neuron", ("tests/neuron",)),
    ("conformance", ("tests/conformance",)),
    ("docs", ("tests/test_docs.py",)),
    ("README.md", ("tests/test_docs.py",)),
    ("tests/thirdparty", ("tests/plugin/test_example_plugin.py",)),
)


def changed() -> list[str]:
    """Files that differ from where this branch left main, and files that git does not know yet."""
    base = git("merge-base", "HEAD", "main") or "HEAD"
    return [*git("diff", "--name-only", base).split(), *git("ls-files", "--others", "--exclude-standard").split()]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def tests_of(file: str) -> list[str]:
    """The tests of a file: a module of tests is its own."""
    path = Path(file)
    if file.startswith("tests/"):
        if path.name.startswith("test_"):
            return [file]
        if not file.startswith("tests/thirdparty/"):
            return [] if path.parent == Path("tests") else [str(path.parent)]
    for room, tests in ROOMS:
        parts, wanted = path.parts, Path(room).parts
        if len(parts) >= len(wanted) and all(want in ("{}", part) for part, want in zip(parts, wanted, strict=False)):
            below = parts[wanted.index("{}")] if "{}" in wanted else ""
            return [each.replace("{}", below) for each in tests]
    return []


def selected() -> list[str]:
    """Modules and folders of tests, those that changed themselves first."""
    found = list(dict.fromkeys(test for file in changed() for test in tests_of(file) if (ROOT / test).exists()))
    # A folder's tests are not asked for again one by one.
    kept = [test for test in found if not any(str(parent) in found for parent in Path(test).parents)]
    return sorted(kept, key=lambda test: not test.endswith(".py"))


class HalfAMinute:
    """Leaves out, and says so, what does not fit."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS
        self._left_out = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: any(word in item.nodeid for word in SLOW))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self._end:
            self._left_out += 1
            pytest.skip("no time is left")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._left_out:
            terminalreporter.line(f"{self._left_out} tests did not fit into half a minute; `make test` runs all")


def main() -> int:
    tests = selected()
    print("\n".join(tests) or "nothing changed that has tests")
    return int(pytest.main(["-q", *(str(ROOT / test) for test in tests)], [HalfAMinute()])) if tests else 0


if __name__ == "__main__":
    sys.exit(main())
