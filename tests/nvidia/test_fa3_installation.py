"""Which build of FlashAttention-3 is found, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nvidia.fa3_standin import standing_in
from xattn_nvidia.fa3 import installation, vendor
from xattn_nvidia.fa3.installation import Build, describe

from xattn import Reason
from xattn.plugin.devices import emulated

CONFIG = (
    "CONFIG = {'build_flags': {'FLASHATTENTION_DISABLE_BACKWARD': True, 'FLASH_ATTENTION_DISABLE_HDIMDIFF64': True}}\n"
)

Put = Callable[..., None]


@pytest.fixture(name="put")
def a_site_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Writes files into a folder that Python imports from; without text they are empty."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name.replace("__in__", "/").replace("__so", ".abi3.so")
            path.parent.mkdir(exist_ok=True)
            (path if path.suffix == ".so" else path.with_suffix(".py")).write_text(text)
        installation.clear()
        sys.path_importer_cache.clear()

    yield put
    # An import that failed leaves its package.
    for package in ("flash_attn_3", "fa3_fwd"):
        sys.modules.pop(package, None)
    vendor.forget()
    installation.clear()


def found() -> Build:
    build = installation.installation()
    assert isinstance(build, Build)
    return build


def test_none_is_there(put: Put) -> None:
    """fa3-many-builds"""
    put()
    assert isinstance(installation.installation(), Reason)
    assert describe().startswith("cannot be used: FlashAttention-3 is not installed. pip install")


@pytest.mark.parametrize(("package", "config"), [("flash_attn_3", "flash_attn_config"), ("fa3_fwd", "fa3_fwd_config")])
def test_what_a_build_lacks_is_read_from_its_flags(put: Put, package: str, config: str) -> None:
    """fa3-many-builds, fa3-built-without"""
    put(**{f"{package}__in___C__so": "", config: CONFIG})
    build = found()
    assert (build.package, build.version, build.has("BACKWARD"), build.has("LOCAL")) == (package, None, False, True)
    assert not build.has("HDIMDIFF64")
    assert "built without gradients" in describe()


def test_its_own_source_goes_before_a_third_partys(put: Put) -> None:
    put(fa3_fwd__in___C__so="", fa3_fwd_config=CONFIG, flash_attn_3__in___C__so="", flash_attn_config=CONFIG)
    assert found().package == "flash_attn_3"


def test_one_that_cannot_be_used_hides_no_other(put: Put) -> None:
    put(fa3_fwd__in___C__so="", fa3_fwd_config=CONFIG, flash_attn_3__in____init__="")
    assert found().package == "fa3_fwd"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"flash_attn_3__in____init__": ""}, "no compiled kernels"),
        ({"flash_attn_3__in___C__so": ""}, "does not say what it was built without"),
        ({"flash_attn_3__in___C__so": "", "flash_attn_config": "CONFIG = made()"}, "does not say"),
        ({"flash_attn_3__in___C__so": "", "flash_attn_config": "CONFIG = {}"}, "does not say"),
        ({"flash_attn_3__in___C__so": "", "flash_attn_config": "("}, "does not say"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_said(put: Put, files: dict[str, str], said: str) -> None:
    put(**files)
    assert isinstance(installation.installation(), Reason)
    assert said in describe()


def test_the_line_of_a_device_that_it_is_not_for() -> None:
    with standing_in():
        assert describe().endswith("on sm_90")
        emulated["cpu"] = ("cuda", "sm_80")
        assert describe().endswith("but it is for sm_90, and here is sm_80")
        emulated.clear()
        assert "but torch" in describe()


def test_an_import_that_fails_says_of_what(put: Put) -> None:
    put(flash_attn_3__in___C__so="no library", flash_attn_config=CONFIG)
    vendor.forget()
    with pytest.raises(ImportError) as caught:
        vendor._operator("fwd")
    notes = getattr(caught.value, "__notes__", [])
    assert any("flash_attn_3" in note and "XATTN_DISABLE=fa3" in note for note in notes)


def test_its_python_is_not_asked() -> None:
    """fa3-fake-needs-a-missing-module: the operators alone are imported."""
    with standing_in():
        vendor._operator("fwd")
    assert not {"fa3_fwd_interface", "flash_attn_interface"} & set(sys.modules)
