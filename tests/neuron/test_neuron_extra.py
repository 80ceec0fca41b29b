"""`pip install 'xattn[neuron]'`, resolved against the index that pip is set up for: without AWS's index it fails at
once, instead of installing PyPI's placeholders."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import requires

import pytest
from neuron.placeholders import PLACEHOLDERS
from packaging.requirements import Requirement
from support import ROOT


def extra() -> list[Requirement]:
    """What the extra adds."""
    found = [Requirement(text) for text in requires("xattn") or []]
    chosen = [each for each in found if each.marker is not None and each.marker.evaluate({"extra": "neuron"})]
    return [each for each in chosen if not each.marker.evaluate({"extra": ""})]  # type: ignore[union-attr]


def texts() -> list[str]:
    return [f"{each.name}{each.specifier}" for each in extra()]


def resolve(*requirements: str) -> subprocess.CompletedProcess[str]:
    """What pip would say in an empty environment."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    return subprocess.run([*command, *requirements], capture_output=True, text=True, timeout=120)


def of_awss() -> list[Requirement]:
    return [each for each in extra() if each.name in PLACEHOLDERS]


def test_the_metadata_is_of_this_checkout() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("neuron = [")]
    assert sorted(map(str, map(Requirement, json.loads(line.removeprefix("neuron = "))))) == sorted(texts())


def test_it_names_what_the_backends_need() -> None:
    assert {each.name for each in of_awss()} == {"nki", "neuronx-cc", "torch-neuronx"}
    assert "packaging" in {each.name for each in extra()}


def test_every_floor_is_above_the_placeholder() -> None:
    """pypi-wrong-package, pypi-empty-shell"""
    assert of_awss()
    for each in of_awss():
        assert not each.specifier.contains(PLACEHOLDERS[each.name][0], prereleases=True)


def test_a_plain_install_fails_and_names_the_package() -> None:
    done = resolve(*texts())
    assert done.returncode != 0
    assert "No matching distribution found for" in done.stderr
    assert any(each.name in done.stderr for each in of_awss())


@pytest.mark.parametrize("name", ["nki", "neuronx-cc", "torch-neuronx"])
def test_each_of_awss_packages_fails_by_itself(name: str) -> None:
    (text,) = [text for text in texts() if Requirement(text).name == name]
    done = resolve(text)
    assert done.returncode != 0
    assert f"No matching distribution found for {text}" in done.stderr


def test_the_placeholders_would_have_been_installed() -> None:
    """What the floors are there for: pip sees the placeholder, and takes it where nothing stops it."""
    done = resolve("nki")
    assert done.returncode == 0, done.stderr
