"""Which of AWS's packages and devices are there: made-up site folders, none of whose modules may be imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from neuron.placeholders import PLACEHOLDERS, WRONG
from support import run_python
from xattn_neuron import installation as module
from xattn_neuron import packages
from xattn_neuron.installation import Installation, clear, describe, installation

import xattn
from xattn import Reason

INDEX = "https://pip.repos.neuron.amazonaws.com"
IMPORTED = "raise RuntimeError('imported')\n"
NEVER = ["torch_neuronx", "nki", "nkilib", "neuronxcc", "neuronx_distributed_inference", "nkilib_src", "libneuronxla"]


@pytest.fixture(autouse=True)
def _fresh(clean: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a device, and nothing remembered, before and after."""
    monkeypatch.setattr(module, "DEVICES", tmp_path)
    monkeypatch.setattr(module, "PRODUCT", tmp_path / "product_name")
    monkeypatch.delenv("NEURON_RT_VIRTUAL_CORE_SIZE", raising=False)
    clear()
    yield
    assert not set(NEVER) & set(sys.modules)
    clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder first on sys.path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def metadata(site: Path, name: str, version: str, description: str = "") -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n{description}\n")
    invalidate_caches()
    clear()


def real(site: Path, name: str, version: str, folder: str = "") -> Path:
    metadata(site, name, version)
    return folder_of(site, folder or packages.MODULES[name])


def folder_of(site: Path, name: str) -> Path:
    root = site / name
    root.mkdir()
    (root / "__init__.py").write_text(IMPORTED)
    invalidate_caches()
    clear()
    return root


def placeholder(site: Path, name: str) -> None:
    version, folder, text = PLACEHOLDERS[name]
    about = WRONG if folder else "NKI Library does not publish installable wheels to PyPI. Access it either directly"
    metadata(site, name, version, about)
    if folder:
        (site / folder).mkdir()
        (site / folder / "__init__.py").write_text(text)
    invalidate_caches()


def device(tmp_path: Path, product: str = "") -> None:
    (tmp_path / "neuron0").touch()
    if product:
        (tmp_path / "product_name").write_text(f"{product}\n")
    clear()


def sdk(site: Path, nki: str = "0.3.0", neuronx_cc: str = "2.24.5133.0") -> None:
    real(site, "torch-neuronx", "2.9.0.2.13.1")
    real(site, "nki", nki)
    root = real(site, "neuronx-cc", neuronx_cc)
    folder_of(site, "nkilib")
    (root / "nki" / "kernels").mkdir(parents=True)
    (root / "nki" / "kernels" / "attention.cpython-311-x86_64-linux-gnu.so").touch()


def found() -> Installation:
    answer = installation()
    assert isinstance(answer, Installation), answer
    assert str(answer) in describe()
    assert "\n" not in describe()
    return answer


def refused(*parts: str) -> Reason:
    """The Reason, which says each of the parts, and whose line for `xattn info` says what to do."""
    answer = installation()
    assert isinstance(answer, Reason), answer
    assert answer.hint
    for part in parts:
        assert part in f"{answer.got} {answer.hint}"
    line = describe()
    assert str(answer.got) in line
    assert answer.hint in line
    assert "\n" not in line
    return answer


def test_nothing() -> None:
    refused("none of its packages is installed", "xattn[neuron]", INDEX)


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_a_placeholder_is_not_installed(site: Path, name: str) -> None:
    """pypi-wrong-package, pypi-empty-shell: whatever the metadata says, and whatever find_spec finds."""
    placeholder(site, name)
    version = PLACEHOLDERS[name][0]
    refused(f"{name} {version} is PyPI's placeholder", f"pip uninstall {name}", INDEX)
    assert not packages.look()[name].usable


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_a_placeholder_beside_the_sdk(site: Path, tmp_path: Path, name: str) -> None:
    """In a folder ahead of the real one: the others are used as far as they go, and the line says what is wrong."""
    device(tmp_path, "trn2.48xlarge")
    for each in {"torch-neuronx", "nki", "neuronx-cc"} - {name}:
        real(site, each, {"torch-neuronx": "2.9.0.2.13", "nki": "0.3.0", "neuronx-cc": "2.24.1"}[each])
    placeholder(site, name)
    assert f"pip uninstall {name}" in describe()
    if name == "torch-neuronx":
        refused("PyPI's placeholder", "Nothing calls a kernel from torch without it")
    elif name in ("nki", "neuronx-cc"):
        assert getattr(found(), name.replace("-", "_")) is None
    else:
        assert found().nki == "0.3.0"


def test_a_placeholder_without_metadata(site: Path) -> None:
    (site / "nki").mkdir()
    (site / "nki" / "__init__.py").write_text(PLACEHOLDERS["nki"][2])
    invalidate_caches()
    refused("nki unknown is PyPI's placeholder")


def test_metadata_without_a_module(site: Path, tmp_path: Path) -> None:
    """As a removal that went wrong leaves it, or a later placeholder that says nothing of itself."""
    device(tmp_path)
    metadata(site, "neuronx-cc", "2.24.1")
    refused("there is no neuronxcc to import", "pip uninstall neuronx-cc")


def test_a_folder_without_a_module(site: Path) -> None:
    """Any folder of that name is a package to Python: a clone of a repository called nki, say."""
    (site / "nki").mkdir()
    refused("none of its packages is installed")


def test_a_module_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("libneuronxla")
    monkeypatch.setitem(sys.modules, "libneuronxla", made)
    refused("none of its packages is installed")
    monkeypatch.delitem(sys.modules, "libneuronxla")


def test_a_device_without_packages(tmp_path: Path) -> None:
    device(tmp_path, "trn2.48xlarge")
    refused("beside", "neuron0", INDEX)


def test_packages_without_a_device(site: Path) -> None:
    sdk(site)
    refused("but no Neuron device", "neuron-ls", "NEURON_PLATFORM_TARGET_OVERRIDE")


def test_compiling_without_a_device(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdk(site)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn3")
    assert found().platform == "trn3"


def test_kernels_without_torch_neuronx(site: Path, tmp_path: Path) -> None:
    device(tmp_path, "trn2.48xlarge")
    real(site, "nki", "0.3.0")
    refused("nki 0.3.0, but not torch-neuronx")


def test_the_whole_sdk(site: Path, tmp_path: Path) -> None:
    device(tmp_path, "trn2.48xlarge")
    sdk(site)
    real(site, "neuronx-distributed-inference", "0.9.17334")
    assert found() == Installation(
        nki="0.3.0",
        neuronx_cc="2.24.5133.0",
        nkilib="2.24.5133.0",
        nxdi="0.9.17334",
        torch_neuronx="2.9.0.2.13.1",
        platform="trn2",
        lnc=2,
        legacy_attention=True,
    )


def test_an_nki_library_of_ones_own(site: Path, tmp_path: Path) -> None:
    device(tmp_path)
    sdk(site)
    real(site, "nki-library", "2.30.1")
    assert found().nkilib == "2.30.1"


def test_a_compiler_that_brings_no_library(site: Path, tmp_path: Path) -> None:
    device(tmp_path)
    real(site, "torch-neuronx", "2.5.1.2.4")
    real(site, "neuronx-cc", "2.17.194.0")
    answer = found()
    assert (answer.nki, answer.nkilib, answer.legacy_attention) == (None, None, False)


def test_modules_of_a_source_tree(site: Path, tmp_path: Path) -> None:
    device(tmp_path)
    sdk(site)
    folder_of(site, "neuronx_distributed_inference")
    assert found().nxdi == "unknown"


@pytest.mark.parametrize(
    ("product", "platform", "lnc"),
    [
        ("trn1.32xlarge", "trn1", 1),
        ("trn1n.32xlarge", "trn1", 1),
        ("inf2.xlarge", "inf2", 1),
        ("trn2.48xlarge", "trn2", 2),
        ("trn2u.48xlarge", "trn2", 2),
        ("trn3.48xlarge", "trn3", 2),
        ("g5.xlarge", None, 1),
        ("trn9.xlarge", None, 1),
        ("", None, 1),
    ],
)
def test_generations(site: Path, tmp_path: Path, product: str, platform: str | None, lnc: int) -> None:
    device(tmp_path, product)
    sdk(site)
    assert (found().platform, found().lnc) == (platform, lnc)
    assert f"on {platform or 'an unknown platform'}" in describe()


@pytest.mark.parametrize(("told", "platform"), [("trn3", "trn3"), ("gen3", "trn2"), ("gen2", "trn1"), ("x", None)])
def test_the_override_comes_first(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, platform: str | None
) -> None:
    device(tmp_path, "inf2.xlarge")
    sdk(site)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", told)
    assert found().platform == platform


@pytest.mark.parametrize("says", ["trn2", None])
def test_torch_neuronx_is_asked_where_it_is_imported(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str | None
) -> None:
    """Where the kernel does not tell, as in some containers. Off Neuron it raises."""

    def target() -> str:
        if says is None:
            raise RuntimeError("Unsupported Platform")
        return says

    device(tmp_path)
    sdk(site)
    utils: Any = SimpleNamespace(get_platform_target=target)
    monkeypatch.setitem(sys.modules, "torch_neuronx.utils", utils)
    assert found().platform == says


@pytest.mark.parametrize(("told", "lnc"), [("1", 1), ("2", 2)])
def test_the_environment_says_how_many_cores(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, lnc: int
) -> None:
    """lnc-comes-from-the-environment"""
    device(tmp_path, "trn2.48xlarge")
    sdk(site)
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", told)
    assert found().lnc == lnc


def test_another_number_of_cores(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device(tmp_path, "trn2.48xlarge")
    sdk(site)
    monkeypatch.setenv("NEURON_LOGICAL_NC_CONFIG", "4")
    refused("NEURON_LOGICAL_NC_CONFIG=4", "Set it to one of them")


def info(name: str) -> dict[str, str]:
    (entry,) = [each for each in xattn.info()["backends"] if each["name"] == name]
    return entry["info"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("nki", "product", "nki_runs", "legacy_runs"),
    [
        ("0.2.0", "trn1.2xlarge", False, True),
        ("0.2.0", "trn2.48xlarge", False, True),
        ("0.3.0", "trn2.48xlarge", True, True),
        ("0.3.0", "trn1.2xlarge", False, False),
        ("0.4.0", "trn2.48xlarge", True, False),
        ("0.6.0", "trn3.48xlarge", True, False),
    ],
)
def test_releases_by_generation(
    site: Path, tmp_path: Path, nki: str, product: str, nki_runs: bool, legacy_runs: bool
) -> None:
    """Too new for the legacy namespace, too old for the NKI library, each on each: a line for each in `xattn info`."""
    device(tmp_path, product)
    sdk(site, nki)
    for name, runs in (("nki", nki_runs), ("nki-legacy", legacy_runs)):
        lines = info(name)
        assert lines["neuron"] == describe()
        assert (set(lines) == {"neuron"}) is runs
        assert all("\n" not in line for line in lines.values())


def test_what_stands_in_place_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Installation(nki="0.3.0", platform="trn2")
    monkeypatch.setattr(module, "overridden", other)
    assert installation() is other
    assert describe() == str(other)


def test_found_once_in_a_process(site: Path, tmp_path: Path) -> None:
    device(tmp_path, "trn2.48xlarge")
    sdk(site)
    assert installation() is installation()


def test_the_plugin_imports_nothing_of_awss(site: Path, tmp_path: Path) -> None:
    """import-asks-for-a-device: neither to load it nor to say what is there."""
    sdk(site)
    code = """
        import sys
        import xattn_neuron, xattn_neuron.torch_ops, xattn_neuron.vendor
        print([backend.info() for backend in xattn_neuron.xattn_backends()])
        assert not {"nki", "nkilib", "neuronxcc", "torch_neuronx", "packaging"} & set(sys.modules)
    """
    assert "no Neuron device" in run_python(code, tmp_path, [site, Path(module.__file__).parents[1]])
