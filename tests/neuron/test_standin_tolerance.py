"""What rtol = 1.0 and atol = 2.0 let through: attention without a mask, asked of the flash_fwd that
neuronx-distributed-inference has, which cannot compute it.

With its default window the kernel dies of its `casual_mask`; with a window of all keys it is causal, and with a window
of 0 each query sees its own tile of keys. Torch's comparison accepts both with these tolerances. This suite does not,
and no profile makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from neuron.kernel_cases import Row, failures, golden
from torch import Tensor
from xattn_conformance.ops.call import execute
from xattn_conformance.profiles.load import find
from xattn_conformance.profiles.schema import ProfileError, parse
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_elsewhere.nki import standin
from xattn_elsewhere.nki.standin.flash_nxdi import FlashConfig, flash_fwd

from xattn import UnsupportedError

RTOL, ATOL = 1.0, 2.0

# Everything that a profile can say of a kernel, at its worst.
LOOSEST = Arithmetic(
    scaled_q=True,
    products="tf32",
    sums="truncated",
    scores="input",
    recomputed_scores="input",
    probabilities="input",
    partial_outputs="input",
    probability_gradients="input",
    score_gradients="input",
    head_gradients="input",
    exp_bits=10,
    tanh_bits=10,
    subnormals="flushed",
)


@dataclass(frozen=True)
class Bidirectional:
    """left: of the window that stands for none."""

    left: int

    def __call__(self, op: str, given: Mapping[str, Any], backend: str) -> Tensor:
        q, k, v = (given[name].transpose(1, 2).contiguous() for name in "qkv")
        out: Tensor = flash_fwd[k.shape[0], k.shape[1]](
            q.mT.contiguous(),
            k.mT.contiguous(),
            v,
            use_causal_mask=False,
            window_size=(self.left, -1),
            config=FlashConfig(seq_tile_size=512),
        )
        return out.transpose(1, 2).contiguous()


def row(family: str) -> Row:
    return Row("b1 q1024 k1024 h1 d32", (("return_lse", False),), family)


def result(adapter: Bidirectional, row: Row) -> Tensor:
    """out, as the golden lies: (batch, nheads, seqlen_q, headdim)."""
    kept: list[Tensor] = []

    def keeping(op: str, given: Mapping[str, Any], backend: str) -> Tensor:
        kept.append(adapter(op, given, backend))
        return kept[0]

    failures(row, keeping)
    return kept[0].transpose(1, 2)


# Inputs as torch.rand makes them, for one; a window of all 1024 keys, or of none before the query.
WRONG = [("positive", 1024), ("coded", 1024), ("positive", 0), ("coded", 0), ("normal", 0)]


@pytest.mark.parametrize(("family", "left"), WRONG)
def test_such_tolerances_accept_it(family: str, left: int) -> None:
    out, want = result(Bidirectional(left), row(family)), torch.from_numpy(golden(row(family))["out"].value)
    torch.testing.assert_close(out.double(), want, rtol=RTOL, atol=ATOL)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("family", "left"), WRONG)
def test_the_suite_does_not(family: str, left: int) -> None:
    assert any("out.zmax" in failure for failure in failures(row(family), Bidirectional(left)))


@pytest.mark.parametrize("left", [1024, 0])
def test_nor_does_it_for_anything_that_a_profile_declares(left: int) -> None:
    same = [name for name in Arithmetic.__struct_fields__ if getattr(LOOSEST, name) == getattr(CANONICAL, name)]
    assert same == ["probabilities", "score_gradients"]  # loosest by themselves
    for family in ("positive", "coded", "normal"):
        assert failures(row(family), Bidirectional(left), arithmetic=LOOSEST) != [], family


@pytest.mark.parametrize(
    "more",
    [
        ("rtol = 1.0\natol = 2.0\n", ""),
        ("", "\n[tolerance]\nrtol = 1.0\natol = 2.0\n"),
        ("", "\nrtol = 1.0\n"),
        ("", '\n[[arithmetic_on]]\ndevice = "neuron"\ndtypes = ["bfloat16"]\natol = 2.0\n'),
    ],
    ids=["keys", "table", "arithmetic", "arithmetic_on"],
)
def test_a_profile_with_such_tolerances_is_refused(more: tuple[str, str]) -> None:
    text, _ = find("nki-legacy")
    assert text.rstrip().endswith('probability_gradients = "input"')  # within [arithmetic]
    parse(text)
    with pytest.raises(ProfileError, match="Tolerances are not declared"):
        parse(more[0] + text + more[1])


def test_no_tolerance_helps_the_default_window() -> None:
    with pytest.raises(UnboundLocalError, match="causal_mask"):
        failures(row("positive"), Bidirectional(-1))


@pytest.mark.usefixtures("clean")
def test_the_backend_takes_neuronx_ccs_kernel_for_it() -> None:
    standin.install("legacy")
    assert failures(row("positive"), execute, "nki-legacy") == []


@pytest.mark.usefixtures("clean")
def test_the_backend_declines_it_where_there_is_no_other() -> None:
    standin.install("nxdi")
    with pytest.raises(UnsupportedError, match="causal"):
        failures(row("positive"), execute, "nki-legacy")
