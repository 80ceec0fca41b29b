"""The lazy import of AWS's modules, with their own errors."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest
from xattn_neuron import vendor

ATTENTION = {
    "attention_cte": ("nkilib.core.attention.attention_cte", "attention_cte"),
    "attention_bwd": ("nkilib.core.attention.attention_bwd", "attention_bwd"),
    "flash_fwd_nxdi": ("neuronx_distributed_inference.modules.sliding_window.attention", "flash_fwd"),
    "flash_config_nxdi": ("neuronx_distributed_inference.modules.sliding_window.attention", "FlashConfig"),
    "flash_fwd_legacy": ("neuronxcc.nki.kernels.attention", "flash_fwd"),
    "flash_config_legacy": ("neuronxcc.nki.kernels.attention", "FlashConfig"),
    "flash_attn_bwd_legacy": ("neuronxcc.nki.kernels.attention", "flash_attn_bwd"),
}


def lay_out(folder: Path, module: str, text: str) -> None:
    parts = module.split(".")
    for depth in range(1, len(parts)):
        package = folder.joinpath(*parts[:depth])
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
    folder.joinpath(*parts[:-1], f"{parts[-1]}.py").write_text(text)


@pytest.mark.parametrize("name", ATTENTION)
def test_each_kernel_is_where_aws_has_it(strangers: Path, name: str) -> None:
    module, attribute = ATTENTION[name]
    lay_out(strangers, module, f"{attribute} = 'the kernel'\n")
    assert getattr(vendor, name)() == "the kernel"


@pytest.mark.parametrize("name", ATTENTION)
def test_what_stands_in_place_is_not_imported(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = object()
    monkeypatch.setitem(vendor.overridden, name, made)
    assert getattr(vendor, name)() is made
    assert "nkilib" not in sys.modules


def test_an_error_of_the_import_comes_through_with_a_note(strangers: Path) -> None:
    """import-asks-for-a-device"""
    lay_out(strangers, "nkilib.core.attention.attention_cte", "raise RuntimeError('Unsupported Platform')\n")
    with pytest.raises(RuntimeError, match="Unsupported Platform") as caught:
        vendor.attention_cte()
    assert "xattn: " in "".join(traceback.format_exception(caught.value))


def test_a_release_without_the_kernel(strangers: Path) -> None:
    lay_out(strangers, "nkilib.core.attention.attention_bwd", "")
    with pytest.raises(AttributeError, match="attention_bwd"):
        vendor.attention_bwd()
