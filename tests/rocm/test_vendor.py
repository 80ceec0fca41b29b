"""The lazy import of aiter: once, with a notice, and with the vendor's own errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import notes_of, run_python
from xattn_rocm import installation, vendor
from xattn_rocm.rules import RULES

JIT, TRITON = "aiter.ops.mha", "aiter.ops.triton.mha"


@pytest.fixture
def aiter(strangers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package aiter that imports; the folder of it."""
    monkeypatch.setattr(vendor, "_told", set())
    for name in ("AITER_JIT_DIR", "TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    root = strangers / "aiter"
    for folder in (root, root / "jit", root / "ops", root / "ops" / "triton"):
        folder.mkdir()
        (folder / "__init__.py").write_text("from .jit import core as core\n" if folder == root else "")
    (root / "jit" / "core.py").touch()
    (root / "ops" / "mha.py").write_text("count = __import__('itertools').count()\n")
    (root / "ops" / "triton" / "mha.py").touch()
    installation.clear()
    yield root
    installation.clear()


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all((r.name, r.levelno) == ("xattn.rocm", logging.WARNING) for r in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_a_module_is_imported_once(aiter: Path) -> None:
    first = vendor.module(JIT)
    assert next(first.count) == 0
    assert next(vendor.module(JIT).count) == 1
    assert sys.modules[JIT] is first


def test_the_notice_comes_once_for_each_kind_and_before_the_import(
    aiter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """first-call-compiles"""
    (aiter / "ops" / "mha.py").write_text("import logging; logging.getLogger('xattn.rocm').warning('imported')\n")
    for name in (JIT, TRITON, JIT, TRITON, "aiter"):
        vendor.module(name)
    jit, imported, triton = notices(caplog)
    assert imported == "imported"
    assert "minutes" in jit
    assert str(aiter / "jit") in jit
    assert "minutes" in triton
    assert str(Path.home() / ".triton" / "cache") in triton


@pytest.mark.parametrize(
    ("name", "environment", "folder"),
    [
        (JIT, {"AITER_JIT_DIR": "/somewhere"}, "/somewhere"),
        (TRITON, {"TRITON_CACHE_DIR": "/kernels", "TRITON_HOME": "/elsewhere"}, "/kernels"),
        (TRITON, {"TRITON_HOME": "/elsewhere"}, "/elsewhere/.triton/cache"),
    ],
)
def test_the_notice_follows_the_environment(
    aiter: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    environment: dict[str, str],
    folder: str,
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    vendor.module(name)
    assert [text.split(": ")[-1] for text in notices(caplog)] == [folder]


def test_a_package_that_cannot_be_written_to_builds_at_home(
    aiter: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != aiter / "jit" and access(path, mode))
    vendor.module(JIT)
    assert notices(caplog)[0].endswith(f": {Path.home() / '.aiter' / 'jit'}")


def test_the_notice_is_seen_by_default_can_be_silenced_and_is_no_warning(aiter: Path, tmp_path: Path) -> None:
    code = f"""
    import contextlib, io, logging, sys, warnings

    warnings.simplefilter("error")
    if sys.argv[1:]:
        logging.getLogger("xattn.rocm").setLevel("ERROR")
    said = sys.stderr = io.StringIO()
    from xattn_rocm import vendor
    vendor.module({JIT!r})
    print("minutes" in said.getvalue())
    """
    assert run_python(code, tmp_path, [aiter.parent]).strip() == "True"
    silenced = code.replace("sys.argv[1:]", "True")
    assert run_python(silenced, tmp_path, [aiter.parent]).strip() == "False"


@pytest.mark.parametrize(
    ("source", "error", "advice"),
    [
        # import-needs-rocm
        ("raise RuntimeError('ROCm version file not found')", RuntimeError, "rocminfo"),
        ("import flydsl_that_is_nowhere", ModuleNotFoundError, "needs flydsl_that_is_nowhere"),
        # wheels-tied-to-one-torch
        ("raise ImportError('undefined symbol: _ZN3c103hip')", ImportError, "one torch and one ROCm"),
        # autotune-key-is-no-argument
        ("raise ValueError('ACTUAL_HEAD_DIM')", ValueError, "XATTN_DISABLE=rocm"),
    ],
)
def test_what_the_import_raises_comes_through(aiter: Path, source: str, error: type[Exception], advice: str) -> None:
    (aiter / "__init__.py").write_text(f"from .jit import core as core\n{source}\n")
    for _ in range(2):  # not remembered as done
        with pytest.raises(error) as caught:
            vendor.module(JIT)
        assert type(caught.value) is error
        (note,) = notes_of(caught.value)
        assert advice in note
        assert str(aiter) in note
        assert "xattn" in note
        assert note in "".join(traceback.format_exception(caught.value))


def test_a_module_that_the_release_lacks(aiter: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"aiter\.nowhere") as caught:
        vendor.module("aiter.nowhere")
    assert "needs" not in notes_of(caught.value)[0]


def test_without_aiter_the_note_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor, "_told", set())
    monkeypatch.setitem(sys.modules, "aiter", None)  # as Python remembers what is not there
    installation.clear()
    with pytest.raises(ModuleNotFoundError) as caught:
        vendor.module(JIT)
    assert notes_of(caught.value) == [f"xattn: {installation.installation()}"]


def test_a_compiled_call_does_not_trace_the_import(aiter: Path) -> None:
    (aiter / "ops" / "mha.py").write_text("def double(x):\n    return 2 * x\n")

    def call(x: torch.Tensor) -> torch.Tensor:
        return vendor.module(JIT).double(x)  # type: ignore[no-any-return]

    assert torch.compile(call, fullgraph=True, backend="eager")(torch.ones(1)) == 2


def test_nothing_is_called_that_only_the_documentation_has() -> None:
    """documented-but-absent"""
    code = "\n".join(
        path.read_text() for path in Path(vendor.__file__).parent.rglob("*.py") if path.parent.name != "rules"
    )
    absent = re.findall(r"(?:aiter\.)?([a-z]+_[a-z_]+)", RULES["documented-but-absent"].what)
    assert len(absent) == 5
    assert not [name for name in absent if name in code]
