"""Which aiter is installed: made-up site folders, none of which may be imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import run_python
from xattn_rocm import installation as module
from xattn_rocm.archs import ARCHS
from xattn_rocm.installation import Installation, clear, describe, installation

import xattn
from xattn import Reason
from xattn.plugin import devices
from xattn.plugin.devices import emulated

# What the newest checked wheel and tree begin with, as far as it matters: the impostor's has no such line.
AMDS = "raise RuntimeError('imported')\nfrom .jit import core as core\n"
IMPOSTORS = 'raise RuntimeError("imported")\nfor _ in ["azip"]:\n    exec("from .%s import %s" % (_, _))\n'
LAYOUTS = {"flat": "ops/triton/mha.py", "attention": "ops/triton/attention/mha.py"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing remembered, before and after."""
    clear()
    yield
    clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder first on sys.path."""
    return place(tmp_path / "site", monkeypatch)


def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def package(site: Path, layout: str | None = "flat", text: str = AMDS) -> Path:
    """AMD's files."""
    root = site / "aiter"
    for name in ("ops/mha.py", "jit/core.py", *([LAYOUTS[layout]] if layout else [])):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "__init__.py").write_text(text)
    invalidate_caches()
    return root


def impostor(site: Path) -> Path:
    root = site / "aiter"
    root.mkdir(exist_ok=True)
    (root / "__init__.py").write_text(IMPOSTORS)
    (root / "azip.py").touch()
    metadata(site, "aiter", "0.13.20191203")
    return root


def metadata(site: Path, name: str, version: str, files: dict[str, str] | None = None) -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in (files or {}).items():
        (info / file).write_text(text)
    invalidate_caches()


def found() -> Installation:
    answer = installation()
    assert isinstance(answer, Installation), answer
    assert "aiter" not in sys.modules
    assert describe().startswith(str(answer))
    return answer


def refused(*parts: str) -> Reason:
    """The Reason, which says each of the parts, and whose line for `xattn info` says what to do."""
    answer = installation()
    assert isinstance(answer, Reason), answer
    assert "aiter" not in sys.modules
    assert answer.code == "aiter"
    assert "amd-aiter" in str(answer.want)
    assert answer.hint
    for part in parts:
        assert part in f"{answer.got} {answer.hint}"
    line = describe()
    assert str(answer.got) in line
    assert answer.hint in line
    assert "\n" not in line
    return answer


@pytest.mark.parametrize("layout", ["flat", "attention"])
def test_an_installed_wheel(site: Path, layout: str) -> None:
    root = package(site, layout)
    version = {"flat": "0.1.7.post2.dev18", "attention": "0.1.22+rocm7.2"}[layout]
    metadata(site, "amd-aiter", version)
    assert found() == Installation(root, version, layout)  # type: ignore[arg-type]


def test_absent() -> None:
    refused("not installed", "xattn[rocm]")


def test_the_impostor(site: Path) -> None:
    root = impostor(site)
    refused(str(root), "async iterators", "pip uninstall aiter")


def test_the_impostor_ahead_of_amds(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(site)
    metadata(site, "amd-aiter", "0.1.20")
    ahead = impostor(place(tmp_path / "ahead", monkeypatch))
    refused(str(ahead), "hides amd-aiter 0.1.20", "pip uninstall aiter")


def test_the_impostor_behind_amds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impostor(place(tmp_path / "behind", monkeypatch))
    site = place(tmp_path / "site", monkeypatch)
    root = package(site)
    metadata(site, "amd-aiter", "0.1.8")
    assert found() == Installation(root, "0.1.8", "flat")


def test_amds_over_the_impostor_in_one_folder(site: Path) -> None:
    impostor(site)
    root = package(site, "attention")
    metadata(site, "amd-aiter", "0.1.20")
    assert found() == Installation(root, "0.1.20", "attention")


def test_the_impostor_over_amds_in_one_folder(site: Path) -> None:
    package(site, "attention")
    metadata(site, "amd-aiter", "0.1.20")
    impostor(site)
    refused("hides amd-aiter 0.1.20", "pip uninstall aiter")


def test_a_source_tree_over_the_impostors_metadata_has_no_version_of_it(site: Path) -> None:
    impostor(site)
    root = package(site, "attention")
    assert found() == Installation(root, None, "attention")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        # no-version-attribute: nothing is imported to ask it
        (None, None),
        ("__version__ = '0.1.7.post2.dev18'\n", "0.1.7.post2.dev18"),
        ("__version__ = version = '0.1.21.dev46+ge4048607'\n", "0.1.21.dev46+ge4048607"),
        ("__version__: str\n__version_tuple__ = (0, 1)\nversion = '0.1.20'\n", "0.1.20"),
        ("from nowhere import version\n", None),
        ("__version__ = 'unknown'\n", None),
    ],
)
def test_a_source_tree(site: Path, text: str | None, version: str | None) -> None:
    root = package(site, "attention")
    if text is not None:
        (root / "_version.py").write_text(text)
    assert found() == Installation(root, version, "attention")


def test_a_source_tree_ahead_of_a_wheel_has_no_version_of_it(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(site)
    metadata(site, "amd-aiter", "0.1.7.post2.dev18")
    tree = package(place(tmp_path / "clone", monkeypatch), "attention")
    assert found() == Installation(tree, None, "attention")


def test_an_editable_install(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = place(tmp_path / "a clone", monkeypatch)
    root = package(clone, "attention")
    url = {"direct_url.json": f'{{"url": "{clone.as_uri()}", "dir_info": {{"editable": true}}}}'}
    metadata(site, "amd-aiter", "0.1.19", url)
    assert found() == Installation(root, "0.1.19", "attention")


def test_a_build_before_the_distribution_was_renamed(site: Path) -> None:
    """renamed-distribution"""
    root = package(site)
    metadata(site, "aiter", "0.1.7.post5")
    assert found() == Installation(root, "0.1.7.post5", "flat")


@pytest.mark.parametrize("version", ["0.1.6.post3", "0.1.5", "0.1.7.dev3"])
def test_too_old(site: Path, version: str) -> None:
    package(site)
    metadata(site, "amd-aiter", version)
    refused(version, "too old", "xattn[rocm]")


@pytest.mark.parametrize("version", ["0.1.dev1+ge404860", "0.0.0", "not a version"])
def test_a_version_that_is_none(site: Path, version: str) -> None:
    """What setuptools_scm says of a clone without tags tells nothing."""
    root = package(site, "attention")
    metadata(site, "amd-aiter", version)
    assert found() == Installation(root, None, "attention")


def test_neither_layout(site: Path) -> None:
    package(site, None)
    metadata(site, "amd-aiter", "0.1.20")
    refused("neither", *LAYOUTS.values())


def test_both_layouts(site: Path) -> None:
    """The newer keeps nothing at the old place, but an upgrade may leave something there."""
    package(site, "flat")
    package(site, "attention")
    assert found().layout == "attention"


def test_metadata_without_files(site: Path) -> None:
    metadata(site, "amd-aiter", "0.1.20")
    refused("0.1.20", "no folder", "pip uninstall amd-aiter")


def test_metadata_with_a_few_files(site: Path) -> None:
    metadata(site, "amd-aiter", "0.1.20")
    (site / "aiter").mkdir()
    (site / "aiter" / "__init__.py").touch()
    refused("lacks most of amd-aiter 0.1.20", "pip uninstall amd-aiter")


@pytest.mark.parametrize("missing", ["ops/mha.py", "jit/core.py"])
def test_a_folder_that_has_something_of_amds(site: Path, missing: str) -> None:
    root = package(site)
    (root / missing).unlink()
    refused(str(root), "not AMD's")


def test_a_leftover_without_metadata(site: Path) -> None:
    (site / "amd_aiter-0.1.20.dist-info").mkdir()
    refused("not installed")


def test_the_folder_above_a_clone(site: Path) -> None:
    """A folder is a package to Python even without a file in it, and a clone of ROCm/aiter is called aiter."""
    (site / "aiter").mkdir()
    refused("not installed", "xattn[rocm]")
    package(site / "aiter", "attention")
    clear()
    refused(str(site / "aiter"), "clone", "PYTHONPATH")


def test_a_module_of_that_name(site: Path) -> None:
    (site / "aiter.py").write_text("raise RuntimeError('imported')\n")
    invalidate_caches()
    refused(str(site / "aiter.py"), "Rename")


def test_a_module_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = type(sys)("aiter")
    stub.__spec__ = None
    monkeypatch.setitem(sys.modules, "aiter", stub)
    answer = installation()
    assert isinstance(answer, Reason)
    assert "sys.modules" in describe()


def test_packaging_is_needed_only_beside_aiter(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "packaging"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "packaging", None)
    monkeypatch.setitem(sys.modules, "packaging.version", None)
    refused("not installed")
    package(site)
    clear()
    refused("packaging", "xattn[rocm]")


def test_it_is_looked_for_once(site: Path) -> None:
    refused("not installed")
    root = package(site)
    refused("not installed")
    clear()
    assert found().root == root


def test_an_emulation_says_what_is_there(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(site)
    clear()
    mine = Installation(Path("made up"), "0.1.20", "attention")
    monkeypatch.setattr(module, "overridden", mine)
    assert installation() is mine


def card(monkeypatch: pytest.MonkeyPatch, *archs: str) -> None:
    """torch with HIP and these cards."""
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(archs))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(archs))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(gcnArchName=archs[i]))
    monkeypatch.setattr(devices, "_archs", {})


def test_the_line_without_hip(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = package(site)
    monkeypatch.setattr(torch.version, "hip", None)
    assert describe() == f"amd-aiter of unknown version ({root}), but torch has no HIP: install ROCm's torch"


def test_the_line_without_a_device(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(site)
    card(monkeypatch)
    assert "sees no ROCm device" in describe()
    assert "rocminfo" in describe()


def test_the_line_on_a_card(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(site)
    metadata(site, "amd-aiter", "0.1.20")
    card(monkeypatch, "gfx942:sramecc+:xnack-", "gfx942:sramecc+:xnack-", "gfx1201")
    assert describe() == f"amd-aiter 0.1.20 ({site / 'aiter'}), on gfx942, gfx1201"


def test_the_line_on_an_unknown_arch(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """unknown-arch"""
    package(site)
    card(monkeypatch, "gfx942", "gfx1030")
    assert "gfx1030" in describe()
    assert ", ".join(ARCHS) in describe()


def test_the_line_when_the_driver_fails(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: int) -> None:
        raise RuntimeError("no\ndriver")

    package(site)
    card(monkeypatch, "gfx942")
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert describe().endswith("torch cannot say what the device is: no driver")


def test_the_line_of_an_emulation(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(site)
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx950"))
    assert describe().endswith(", on gfx950")


def test_info_shows_the_line_for_both_backends(site: Path) -> None:
    impostor(site)
    told = {each["name"]: each["info"] for each in xattn.info()["backends"]}
    assert told["aiter"] == told["aiter-triton"] == {"aiter": describe()}
    assert xattn.info()["problems"] == []


def test_a_compiled_call_takes_it_for_a_constant(site: Path) -> None:
    package(site)

    def layout(x: torch.Tensor) -> tuple[torch.Tensor, str]:
        answer = installation()
        return x + 1, "none" if isinstance(answer, Reason) else answer.layout

    assert torch.compile(layout, fullgraph=True, backend="eager")(torch.zeros(1)) == (torch.ones(1), "flat")


def test_nothing_of_aiter_is_imported(site: Path, tmp_path: Path) -> None:
    """import-needs-rocm, in a process of its own: `info`, `explain` and a call that another backend serves."""
    package(site, "attention")
    code = """
    import sys, torch, xattn
    q, k, v = torch.zeros(3, 1, 2, 1, 8)
    xattn.info(), xattn.explain(q, k, v), xattn.attention(q, k, v)
    print(sorted(name for name in sys.modules if name.split(".")[0] in ("aiter", "triton")))
    """
    assert run_python(code, tmp_path, [site]).split("\n")[-2] == "[]"
