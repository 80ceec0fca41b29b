"""What aiter's rope is not given: calls that `aiter` declines."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import xattn_rocm.installation
from rocm.rotary_recorder import a_gfx942, tensors  # noqa: F401
from xattn_rocm.aiter.apply_rotary import AiterRotary
from xattn_rocm.installation import Installation

import xattn
from xattn import Reason, RotaryRequest


def asked(**changes: Any) -> RotaryRequest:
    made: dict[str, Any] = {
        "device": "rocm", "arch": "gfx942", "dtype": torch.bfloat16, "cos_dtype": torch.float32, "batch": 2,
        "seqlen": 128, "nheads": 8, "nheads_k": 2, "headdim": 128, "rotary_dim": 128,
    }  # fmt: skip
    return RotaryRequest(**{**made, **changes})


def codes(request: RotaryRequest) -> list[str]:
    return [reason.code for reason in AiterRotary().reasons(request)]


def release(version: str) -> None:
    layout: Any = "flat" if version.startswith("0.1.7") else "attention"
    xattn_rocm.installation.overridden = Installation(Path(), version, layout)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, []),
        ({"nheads_k": None}, []),
        ({"dtype": torch.float32}, []),
        ({"dtype": torch.float16, "cos_dtype": torch.float16}, []),
        ({"batched": True, "requires_grad": True, "interleaved": True}, []),
        ({"device": "cuda", "arch": "sm_90"}, ["device"]),
        ({"device": "cpu", "arch": None}, ["device"]),
        ({"dtype": torch.float64}, ["dtype"]),
        ({"batch": 0}, ["empty"]),
        ({"seqlen": 0}, ["empty"]),
        ({"arch": "gfx803"}, ["arch"]),
        ({"arch": None}, ["arch"]),
        ({"arch": "gfx90a"}, []),
        ({"arch": "gfx950"}, []),
        ({"arch": "gfx1250"}, []),
        ({"arch": "gfx1201"}, []),
        ({"arch": "gfx1100"}, ["arch"]),
        ({"arch": "gfx1151"}, ["arch"]),
        # 2 GiB of q, and of k: 128 * 8 * 128 * 2 bytes a row of the batch.
        ({"batch": 8191}, []),
        ({"batch": 8192}, ["size"]),
        ({"batch": 4096, "nheads": 4, "nheads_k": 16}, ["size"]),
        ({"batch": 4096, "dtype": torch.float32}, ["size"]),
        # What is left over in vectors of 2, and of 4.
        ({"rotary_dim": 64}, []),
        ({"headdim": 81, "rotary_dim": 80}, ["rotary_dim"]),
        ({"headdim": 82, "rotary_dim": 80}, []),
        ({"headdim": 82, "rotary_dim": 80, "interleaved": True}, ["rotary_dim"]),
        ({"headdim": 84, "rotary_dim": 80, "interleaved": True}, []),
        ({"arch": "gfx803", "headdim": 81, "rotary_dim": 80, "batch": 0}, ["empty", "arch", "rotary_dim"]),
    ],
)
def test_everything_that_stops_it(changes: dict[str, Any], wanted: list[str]) -> None:
    assert codes(asked(**changes)) == wanted


@pytest.mark.parametrize(
    ("version", "changes", "wanted"),
    [
        ("0.1.11.post1", {"headdim": 81, "rotary_dim": 80}, []),
        ("0.1.12", {"headdim": 81, "rotary_dim": 80}, ["rotary_dim"]),
        ("0.1.7.post2.dev18", {"arch": "gfx1100"}, []),
        ("0.1.12", {"arch": "gfx1100"}, ["arch"]),
        ("0.1.14.post1", {"arch": "gfx1201"}, ["arch"]),
        ("0.1.15", {"arch": "gfx1201"}, []),
        ("0.1.11.post1", {"batch": 65535, "seqlen": 1}, []),
        ("0.1.11.post1", {"batch": 65536, "seqlen": 1}, ["batch"]),
        ("0.1.12", {"batch": 65536, "seqlen": 1}, []),
    ],
)
def test_what_a_release_has(version: str, changes: dict[str, Any], wanted: list[str]) -> None:
    release(version)
    assert codes(asked(**changes)) == wanted


def test_without_aiter_the_reason_is_the_installations(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Reason("aiter", "nothing", "AMD's amd-aiter", "Install it.")
    monkeypatch.setattr(xattn_rocm.installation, "overridden", absent)
    assert AiterRotary().reasons(asked()) == [absent]


def test_nothing_of_aiter_is_imported_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"aiter.{name} was asked for")

    monkeypatch.setitem(sys.modules, "aiter", Trap("aiter"))
    assert codes(asked()) == []


def test_the_other_backend_does_not_rotate() -> None:
    with pytest.raises(xattn.UnsupportedError, match="op=apply_rotary"):
        xattn.apply_rotary(*tensors(), backend="aiter-triton")
