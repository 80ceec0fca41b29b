"""Where kernel files are looked for, what is said of missing ones and of unknown calls, and AWS's own simulator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from xattn_elsewhere.nki.emulation import kernels, launch, loader, simulator

NXDI = "neuronx_distributed_inference/modules/sliding_window/attention.py"
NKILIB = "core/attention/attention_cte.py"

LEGACY_KERNEL = """
from neuronxcc import nki
import neuronxcc.nki.language as nl

class FlashConfig: pass

@nki.jit
def flash_fwd(q):
    o = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    nl.store(o, nl.load(q) * 3.0)
    return o
"""
KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl
from . import helper

@nki.jit
def attention_cte(q):
    o = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(o, q)
    return o
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No kernels, no modules in AWS's names and no paths, before and afterwards."""
    launch._running.programs.clear()
    for variable in ("XATTN_NKILIB_PATH", "XATTN_NXDI_PATH", "XATTN_NEURONXCC_ATTENTION", "NKILIB_LOG_LEVEL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    _forget()
    yield
    _forget()


def _forget() -> None:
    for cached in (kernels._current, kernels._legacy, kernels.nkilib, kernels.legacy):
        cached.cache_clear()
    for name in list(sys.modules):
        if name.split(".")[0] in ("nki", "nkilib", "nkilib_src", "neuronxcc", "neuronx_distributed_inference"):
            del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def library(root: Path, text: str = KERNEL) -> None:
    for folder in ("", "core", "core/attention"):
        write(root / folder / "__init__.py", "")
    write(root / "core/attention/helper.py", "")
    write(root / NKILIB, text)


X = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("below", "given"),
    [
        ("src/nkilib_src/nkilib", ""),
        ("nkilib_src/nkilib", ""),
        ("nkilib", ""),
        ("site/nkilib", "site/nkilib"),
        ("site/nkilib_src/nkilib", "site/nkilib_src"),
    ],
)
def test_the_nki_library_is_found(below: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path / below)
    monkeypatch.setenv("XATTN_NKILIB_PATH", str(tmp_path / given))
    torch.testing.assert_close(kernels.attention_cte()(X), X)
    name, digest = loader.digest(kernels.attention_cte())
    assert name.endswith("nkilib.core.attention.attention_cte")
    assert digest.startswith("sha256 ")


def test_an_installed_library_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path / "nkilib")
    monkeypatch.syspath_prepend(tmp_path)
    torch.testing.assert_close(kernels.attention_cte()(X), X)


@pytest.mark.parametrize("below", ["src", "."])
def test_nxdi_is_found_without_importing_its_package(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / below / NXDI, LEGACY_KERNEL)
    write(tmp_path / below / "neuronx_distributed_inference/__init__.py", "raise RuntimeError('looks for a device')")
    monkeypatch.setenv("XATTN_NXDI_PATH", str(tmp_path))
    torch.testing.assert_close(kernels.flash_fwd_nxdi()[1, 1](X), X * 3)
    assert kernels.flash_config_nxdi().__name__ == "FlashConfig"


def test_the_legacy_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XATTN_NEURONXCC_ATTENTION", str(write(tmp_path / "attention.py", LEGACY_KERNEL)))
    torch.testing.assert_close(kernels.flash_fwd_legacy()(X), X * 3)


@pytest.mark.parametrize(
    ("variable", "kernel", "looked_for"),
    [
        ("XATTN_NKILIB_PATH", kernels.attention_cte, f"src/nkilib_src/nkilib/{NKILIB}"),
        ("XATTN_NKILIB_PATH", kernels.attention_bwd, "nkilib/core/attention/attention_bwd.py"),
        ("XATTN_NXDI_PATH", kernels.flash_fwd_nxdi, NXDI),
        ("XATTN_NEURONXCC_ATTENTION", kernels.flash_attn_bwd_legacy, "neuronxcc/nki/kernels/attention.py"),
    ],
)
@pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "no folder"])
def test_missing_kernels_are_named(
    variable: str,
    kernel: Callable[[], Any],
    looked_for: str,
    there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path if there else tmp_path / "nothing"
    monkeypatch.setenv(variable, str(path))
    with pytest.raises(loader.MissingKernelsError) as raised:
        kernel()
    assert f"{variable}={path}" in str(raised.value)
    assert looked_for in str(raised.value)


def test_no_path_and_nothing_installed() -> None:
    for variable, kernel in (("XATTN_NKILIB_PATH", kernels.attention_cte), ("XATTN_NXDI_PATH", kernels.flash_fwd_nxdi)):
        with pytest.raises(loader.MissingKernelsError, match=f"{variable} names no path, .* not installed"):
            kernel()


def test_what_a_kernel_file_misses_is_not_taken_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path / "nkilib", "import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        kernels.attention_cte()


UNKNOWN = {
    "in a call": (KERNEL.replace("dma_copy", "dma_teleport"), AttributeError, r"nki\.isa\.dma_teleport"),
    "of the language": (KERNEL.replace("nl.ndarray", "nl.ndfog"), AttributeError, r"nki\.language\.ndfog"),
    "on import": (KERNEL + "\nnisa.quantum", AttributeError, r"nki\.isa\.quantum"),
    "imported": (KERNEL + "\nfrom nki.isa import quantum", ImportError, "quantum"),
    "a module": (KERNEL + "\nimport nki.collectives", ImportError, r"nki\.collectives"),
    "an argument": (KERNEL.replace("o, q)", "o, q, dge_mode=2)"), TypeError, "dma_copy.*dge_mode"),
}


@pytest.mark.parametrize(("text", "error", "name"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_call_is_named_with_its_file(
    text: str, error: type[Exception], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path / "nkilib", text)
    monkeypatch.setenv("XATTN_NKILIB_PATH", str(tmp_path))
    with pytest.raises(error, match=name) as raised:
        kernels.attention_cte()(X)
    if error is AttributeError:
        assert "is not emulated" in str(raised.value)
        assert f"{NKILIB}, line" in str(raised.value)


def test_modules_are_placed_when_a_kernel_is_asked_for() -> None:
    assert "nki" not in sys.modules
    assert "neuronxcc" not in sys.modules
    kernels.runs_on("cte")
    kernels._legacy()
    assert {"nki", "nki.isa", "nki.language", "neuronxcc", "neuronxcc.nki.isa"} <= set(sys.modules)


def test_the_real_simulator_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of it: `simulate` and `jit` as documented."""
    nki = ModuleType("nki")
    log: list[Any] = []

    class Jitted:
        def __init__(self, function: Callable[..., Any], lnc: int = 1) -> None:
            self.function, self.lnc = function, lnc
            self.__name__, self.__module__ = function.__name__, function.__module__

        def __getitem__(self, lnc: int) -> Jitted:
            return Jitted(self.function, lnc)

    def simulate(kernel: Jitted) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            log.append((kernel.lnc, kwargs))
            return args[0]

        return run

    vars(nki).update(jit=Jitted, simulate=simulate, __version__="0.6.0")
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn3")
    monkeypatch.setitem(sys.modules, "nki", nki)
    library(tmp_path / "nkilib", "import nki\n@nki.jit\ndef attention_cte(q): pass\n")
    monkeypatch.setenv("XATTN_NKILIB_PATH", str(tmp_path))
    kernel = kernels.attention_cte()
    assert kernel(X, scale=2.0) is X
    assert kernel[2](X) is X
    assert log == [(1, {"scale": 2.0}), (2, {})]
    assert kernels.runs_on("cte") == "nki.simulate of nki 0.6.0"
    assert kernels.runs_on("legacy") == "NumPy emulation of NKI"
    assert loader.digest(kernel)[0] == "nkilib.core.attention.attention_cte"


@pytest.mark.parametrize("body", ["raise ImportError('WRONG PACKAGE')", "jit = None"])
def test_what_is_not_the_real_nki_is_emulated(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "nki/__init__.py", body)
    monkeypatch.syspath_prepend(tmp_path)
    assert simulator.real() is None
    assert kernels.runs_on("cte") == "NumPy emulation of NKI"
    assert sys.modules["nki"].jit.__module__ == "xattn_elsewhere.nki.emulation.language"
