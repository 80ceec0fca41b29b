"""`pip install 'xattn[rocm]'`, resolved against the index that pip is set up for: it is AMD's distribution."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from support import ROOT


def extra() -> list[str]:
    """What the extra adds: torch and the rest of xattn's own needs would take minutes to resolve."""
    found = [Requirement(text) for text in requires("xattn") or []]
    chosen = [each for each in found if each.marker is not None and each.marker.evaluate({"extra": "rocm"})]
    return [f"{each.name}{each.specifier}" for each in chosen if not each.marker.evaluate({"extra": ""})]  # type: ignore[union-attr]


def resolve(*requirements: str) -> dict[str, str]:
    """Everything that pip would install in an empty environment: names and versions. Without --pre."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    installed = json.loads(done.stdout)["install"]
    return {each["metadata"]["name"].lower(): each["metadata"]["version"] for each in installed}


@pytest.fixture(scope="module")
def resolved() -> dict[str, str]:
    return resolve(*extra())


def test_the_metadata_is_of_this_checkout() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("rocm = [")]
    assert sorted(map(str, map(Requirement, json.loads(line.removeprefix("rocm = "))))) == sorted(extra())


def test_it_takes_amds_distribution_and_never_the_impostor(resolved: dict[str, str]) -> None:
    """pypi-impostor: nothing that the extra needs, or needs in turn, is the library for async iterators."""
    assert Version(resolved["amd-aiter"]) >= Version("0.1.7.post2.dev18")
    assert "aiter" not in resolved
    assert "packaging" in resolved


def test_it_leaves_torch_alone(resolved: dict[str, str]) -> None:
    """ROCm's torch comes from another index: an extra that names torch could replace it."""
    assert not {name for name in resolved if "torch" in name or "triton" in name}


def test_the_specifier_admits_the_pre_release_by_itself() -> None:
    """pip takes a pre-release too where there is nothing else, but other installers ask for a specifier that names one
    (PEP 440), and to be told so by hand otherwise."""
    (aiter,) = [Requirement(text) for text in extra() if text.startswith("amd-aiter")]
    assert aiter.specifier.prereleases
    assert "0.1.7.post2.dev18" in aiter.specifier


def test_nothing_else_of_xattn_needs_aiter() -> None:
    others = [Requirement(text) for text in requires("xattn") or [] if "extra == 'rocm'" not in text.replace('"', "'")]
    assert not {each.name for each in others} & {"aiter", "amd-aiter"}
