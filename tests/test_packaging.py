"""What users get: wheels of `xattn` and of `xattn-conformance`, each built from its sdist, installed away from the
checkout and run where that is out of sight."""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
import textwrap
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath
from sysconfig import get_path
from typing import Any, NamedTuple

import pytest
from support import ROOT, build, execute, install

# Folders of packages in the checkout, and where each ends up in a wheel.
PLUGINS = {f"plugins/{folder.name}": folder.name for folder in (ROOT / "plugins").glob("xattn_*")}
SUITE = {f"conformance/{folder.name}": folder.name for folder in (ROOT / "conformance").glob("xattn_*")}
LIBRARY = {"xattn": "xattn", **PLUGINS}


class Wheel(NamedTuple):
    """A wheel, and the sdist that it was built from."""

    sdist: Path
    path: Path

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.path) as archive:
            return set(archive.namelist())

    def told(self, name: str) -> str:
        """The text of a file of its .dist-info."""
        with zipfile.ZipFile(self.path) as archive:
            (member,) = (each for each in archive.namelist() if each.endswith(f".dist-info/{name}"))
            return archive.read(member).decode()

    def metadata(self) -> Message:
        return Parser().parsestr(self.told("METADATA"))

    def entry_points(self) -> ConfigParser:
        points = ConfigParser()
        points.read_string(self.told("entry_points.txt"))
        return points


class Built(NamedTuple):
    library: Wheel
    suite: Wheel
    site: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packaging")
    library, suite = (made(source, folder) for source in (ROOT, ROOT / "conformance"))
    return Built(library, suite, install(folder / "site", library.path, suite.path))


def made(source: Path, folder: Path) -> Wheel:
    sdist = build(source, folder, "--sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return Wheel(sdist, build(folder / sdist.name.removesuffix(".tar.gz"), folder, "--wheel"))


def python_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def run(built: Built, code: str, cwd: Path, **environment: str) -> Any:
    """Run code on the installed wheel, and parse the JSON it prints.

    -S leaves .pth files alone, and with them the editable install of the checkout that the tests run on.
    """
    path = os.pathsep.join([str(built.site), get_path("purelib"), get_path("platlib")])
    command = [sys.executable, "-S", "-c", textwrap.dedent(code)]
    return json.loads(execute(command, cwd, {"PYTHONPATH": path, **environment}))


def test_the_sdist_holds_the_project_and_no_junk(built: Built) -> None:
    sdist = built.library.sdist
    with tarfile.open(sdist) as archive:
        names = [PurePosixPath(*PurePosixPath(member.name).parts[1:]) for member in archive if not member.isdir()]
        assert all(member.isreg() for member in archive if not member.isdir())
    for name in names:
        hidden = any(part.startswith(".") for part in name.parts)
        assert not hidden or name.parts[0] in (".gitignore", ".ci"), name
        assert not {"__pycache__", "build", "dist", "node_modules", "site"} & set(name.parts), name
        assert name.suffix not in {".gz", ".pyc", ".so", ".o", ".whl", ".zip", ".log", ".orig", ".rej"}, name
    # Most of it are the goldens of the conformance suite.
    assert sdist.stat().st_size < 8 * 2**20
    held = {str(name) for name in names}
    assert {"PKG-INFO", "LICENSE", "Makefile", "README.md", "pyproject.toml", "conformance/pyproject.toml"} <= held
    assert {"docs/write-a-backend.md", "tests/test_packaging.py"} <= held
    for folder in ("tests", *LIBRARY, *SUITE):
        assert {f"{folder}/{name}" for name in python_files(ROOT / folder)} <= held


def packages(wheel: Wheel) -> set[str]:
    return {name.split("/")[0] for name in wheel.names() if ".dist-info/" not in name}


def test_the_wheel_of_the_library_holds_its_packages_and_nothing_else(built: Built) -> None:
    wheel = built.library
    names, points = wheel.names(), wheel.entry_points()
    assert "xattn/py.typed" in names
    assert packages(wheel) == set(LIBRARY.values())
    for folder, package in LIBRARY.items():
        assert {f"{package}/{name}" for name in python_files(ROOT / folder)} <= names, package
        if package in PLUGINS.values():
            plugin = package.removeprefix("xattn_")
            assert points["xattn"][plugin] == package
            assert any(name.startswith(f"{package}/") and name.endswith(".profile.toml") for name in names), package
    assert dict(points["console_scripts"]) == {"xattn": "xattn.cli:main"}
    # Who uses the library has no use for golden outputs.
    assert wheel.path.stat().st_size < 2**20


def test_the_wheel_of_the_suite_holds_its_packages_and_the_goldens(built: Built) -> None:
    wheel = built.suite
    names, points = wheel.names(), wheel.entry_points()
    assert packages(wheel) == set(SUITE.values())
    for folder, package in SUITE.items():
        assert {f"{package}/{name}" for name in python_files(ROOT / folder)} <= names, package
    assert any(name.endswith(".safetensors") for name in names)
    assert dict(points["console_scripts"]) == {"xattn-conformance": "xattn_conformance.cli:main"}
    assert "pytest11" in points


def test_both_are_of_one_version_and_ask_for_each_other_by_it(built: Built) -> None:
    library, suite = built.library.metadata(), built.suite.metadata()
    version = library["Version"]
    assert suite["Version"] == version
    assert f"xattn=={version}" in suite.get_all("Requires-Dist", [])
    assert f"xattn-conformance=={version}; extra == 'conformance'" in library.get_all("Requires-Dist", [])


@pytest.mark.parametrize("which", ["library", "suite"])
def test_each_has_its_licence_and_its_page(which: str, built: Built) -> None:
    wheel = getattr(built, which)
    metadata = wheel.metadata()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.told("licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert any(url.startswith("Homepage, https:") for url in metadata.get_all("Project-URL", []))
    # Relative links lead nowhere on a package index's page.
    links = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert links
    assert [link for link in links if not link.startswith(("https:", "#"))] == []


def test_the_wheel_works_away_from_the_checkout(built: Built, tmp_path: Path) -> None:
    code = """
    import json, sys, torch, xattn

    q, k, v = (torch.randn(2, n, h, 16) for n, h in ((3, 4), (7, 2), (7, 2)))
    names = ("auto", "reference", "sdpa")
    answers = [xattn.attention(q, k, v, causal=True, window=(2, None), backend=name) for name in names]
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0])
    info = xattn.info()
    print(json.dumps({
        "files": [m.__file__ for name, m in sys.modules.items() if name.split(".")[0].startswith("xattn")],
        "version": xattn.__version__,
        "reported": info["xattn"],
        "plugins": {plugin["name"]: plugin["failures"] for plugin in info["plugins"]},
        "problems": info["problems"],
    }))
    """
    told = run(built, code, tmp_path)
    assert all(Path(file).is_relative_to(built.site) for file in told["files"]), told["files"]
    assert f"xattn-{told['version']}-py3-none-any.whl" == built.library.path.name
    assert told["reported"] == told["version"]
    assert told["plugins"] == {package.removeprefix("xattn_"): [] for package in PLUGINS.values()}
    assert told["problems"] == []


def test_importing_xattn_imports_no_plugin_and_no_vendor(built: Built, tmp_path: Path) -> None:
    code = """
    import json, sys, torch

    def tops():
        return {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)

    seen = [tops()]
    import xattn
    seen.append(tops())
    xattn.info(), xattn.explain(*[torch.zeros(1, 1, 1, 8)] * 3)
    seen.append(tops())
    print(json.dumps([sorted(after - before) for before, after in zip(seen, seen[1:])]))
    """
    by_import, by_use = run(built, code, tmp_path)
    assert by_import == ["pluggy", "xattn"]
    assert by_use == sorted(PLUGINS.values())


@pytest.mark.parametrize("how", ["python -m xattn", "xattn"])
def test_the_command_is_there(how: str, built: Built, tmp_path: Path) -> None:
    command = [built.site / "bin" / "xattn"] if how == "xattn" else [sys.executable, "-m", "xattn"]
    told = execute([*command, "--help"], tmp_path, {"PYTHONPATH": str(built.site)})
    for name in ("info", "explain", "bench"):
        assert name in told


def test_the_conformance_suite_works_away_from_the_checkout(built: Built, tmp_path: Path) -> None:
    command: list[str | Path] = [built.site / "bin" / "xattn-conformance", "run", "--backend", "reference"]
    case = "attention/causal+lse/*/b1-q17-k17-h2-g2-d64-v64/needle"
    told = execute([*command, "--case", case, "--out", tmp_path], tmp_path, {"PYTHONPATH": str(built.site)})
    assert "3 PASS" in told
    assert {path.name for path in tmp_path.iterdir()} >= {"reference.json", "reference.xml", "reference.html"}
