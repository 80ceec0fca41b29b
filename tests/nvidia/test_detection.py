"""What is said of the vendors' packages, over metadata that a test lays out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from nvidia.calls import declined, qkv
from xattn_elsewhere.nvidia import cudnn as cudnn_standin
from xattn_elsewhere.nvidia import fa4 as fa4_standin
from xattn_nvidia.cudnn import installation as cudnn
from xattn_nvidia.fa4 import installation as fa4
from xattn_nvidia.shared.detection import at_least

import xattn
from xattn import Reason
from xattn.plugin.devices import emulated
from xattn.testing import fresh

Put = Callable[..., None]

FA4 = {
    "flash-attn-4": "4.0.0b36",
    "nvidia-cutlass-dsl-libs-base": "4.8.1",
    "nvidia-cutlass-dsl-libs-cu13": "4.8.1",
    "quack-kernels": "0.6.5",
    "apache-tvm-ffi": "0.1.15",
    "torch-c-dlpack-ext": "0.1.5",
    "einops": "0.8.2",
}


@pytest.fixture(name="put")
def a_site_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Writes the metadata of distributions, by name and version, and modules that hold nothing."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def put(versions: dict[str, str], *modules: str) -> None:
        for name, version in versions.items():
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for module in modules:
            path = tmp_path / module
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        sys.path_importer_cache.clear()
        fa4.clear()
        cudnn.clear()

    yield put
    fa4.clear()
    cudnn.clear()


KERNELS = ("flash_attn/cute/interface.py", "cutlass/__init__.py")


def test_all_of_fa4_is_there(put: Put) -> None:
    put(FA4, *KERNELS)
    assert fa4.installation() == fa4.Installation("4.0.0b36", "4.8.1")
    assert fa4.describe().startswith("flash-attn-4 4.0.0b36, nvidia-cutlass-dsl 4.8.1; but torch")


@pytest.mark.parametrize(
    ("changed", "modules", "said"),
    [
        ({"flash-attn-4": None}, KERNELS, "FlashAttention-4 is not installed"),
        ({}, ("flash_attn/__init__.py", "cutlass/__init__.py"), "FlashAttention-4 is not installed"),
        ({"flash-attn-4": "4.0.0b20"}, KERNELS, "4.0.0b36 is the oldest"),
        ({"quack-kernels": None}, KERNELS, "without quack-kernels"),
        ({"nvidia-cutlass-dsl-libs-cu13": None}, KERNELS, "without the libraries for CUDA 13"),
        ({"nvidia-cutlass-dsl-libs-cu13": "4.7.0"}, KERNELS, "4.8.1 with libraries of 4.7.0"),
        ({}, KERNELS[:1], "cutlass is on no path"),
    ],
    ids=str,
)
def test_what_fa4_lacks_is_said(put: Put, changed: dict[str, str | None], modules: tuple[str, ...], said: str) -> None:
    """fa4-pre-releases-alone"""
    put({name: version for name, version in (FA4 | changed).items() if version is not None}, *modules)
    assert isinstance(fa4.installation(), Reason)
    assert said in fa4.describe()


def test_what_cudnn_lacks_is_said(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """cudnn-versions-with-wrong-kernels"""
    put({})
    assert "is not installed" in cudnn.describe()
    put({"nvidia-cudnn-frontend": "1.32.0"})
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert "torch has no cuDNN" in cudnn.describe()
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    for version, said in ((91400, "91900 is the oldest"), (91900, "cuDNN 9.19.0")):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        cudnn.clear()
        assert said in cudnn.describe()


def test_versions_are_compared() -> None:
    ordered = ["1.9", "1.32.0", "4.0.0b9", "4.0.0b36", "4.0.0", "4.0.0.post1", "4.0.1b1"]
    assert [[at_least(b, a) for b in ordered[i:]] for i, a in enumerate(ordered)] == [
        [True] * (len(ordered) - i) for i in range(len(ordered))
    ]
    assert not at_least("4.0.0b36", "4.0.0")


@pytest.mark.parametrize("arch", ["sm_80", "sm_100", "sm_120"])
def test_a_card_that_was_not_run_is_not_served(arch: str) -> None:
    """fa4-other-cards"""
    for name, standin, installation in (("fa4", fa4_standin, fa4), ("cudnn", cudnn_standin, cudnn)):
        standin.install()
        emulated["cpu"] = ("cuda", arch)
        try:
            with fresh():
                assert "arch" in declined(name, xattn.attention, *qkv(3, 5))
                assert installation.describe().endswith(f"but it is for sm_90, and here is {arch}")
        finally:
            standin.uninstall()
