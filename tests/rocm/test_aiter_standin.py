"""The stand-in for aiter's kernels, and the adapter over it: right or declined in every trap, where an adapter that
passes everything on is wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from rocm.traps import Trap, failures, load
from torch import Tensor
from xattn_conformance.case import Case
from xattn_conformance.ops.call import Execute, execute

from xattn import AttentionOutput, UnsupportedError

TRAPS, RIGHT = load().trap, load().right


def naive(op: str, given: Mapping[str, Any], backend: str) -> Tensor | AttentionOutput:
    """What one would write from aiter's signatures: every argument to the one of its name."""
    return _passed(given, given["return_lse"])


def less_naive(op: str, given: Mapping[str, Any], backend: str) -> Tensor | AttentionOutput:
    """The same by one who has met `assert return_lse`."""
    returned = _passed(given, given["return_lse"] or any(given[name].requires_grad for name in "qkv"))
    return returned.out if isinstance(returned, AttentionOutput) and not given["return_lse"] else returned


def _passed(given: Mapping[str, Any], return_lse: bool) -> Tensor | AttentionOutput:
    module = sys.modules["aiter"]
    window = tuple(-1 if side is None else side for side in given["window"] or (None, None))
    named = {
        "dropout_p": given["dropout_p"],
        "softmax_scale": given["scale"],
        "causal": given["causal"],
        "window_size": window,
        "bias": given.get("bias"),
        "alibi_slopes": given.get("alibi_slopes"),
        "deterministic": given["deterministic"],
        "return_lse": return_lse,
        "sink_ptr": given.get("sinks"),
    }
    q, k, v = given["q"], given["k"], given["v"]
    if given["softcap"] is None:
        returned = module.flash_attn_func(q, k, v, **named)
        return AttentionOutput(*returned) if return_lse else returned
    batch, seqlen_q, seqlen_k = q.shape[0], q.shape[1], k.shape[1]
    starts = [torch.arange(batch + 1, dtype=torch.int32) * seqlen for seqlen in (seqlen_q, seqlen_k)]
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    named["logits_soft_cap"] = given["softcap"]
    returned = module.flash_attn_varlen_func(*flat, *starts, seqlen_q, seqlen_k, **named)
    out, lse = returned if return_lse else (returned, None)
    out = out.unflatten(0, (batch, seqlen_q))
    return out if lse is None else AttentionOutput(out, lse.unflatten(1, (batch, seqlen_q)).transpose(0, 1))


def _by_arch(traps: list[Trap]) -> list[Any]:
    """One architecture of each trap; the others are for `make extended`."""
    return [
        pytest.param(arch, trap, id=f"{arch}-{trap.name}", marks=[pytest.mark.extended] if others else [])
        for trap in traps
        for others, arch in enumerate(trap.archs)
    ]


def _wrong(case: Case, passed_on: Execute) -> bool:
    try:
        return bool(failures(case, passed_on))
    except (AssertionError, NotImplementedError, RuntimeError):  # what aiter raises in its traps: a crash springs one
        return True
    except TypeError as error:  # OPUS's binding raises it; any other is this module's own
        if "incompatible function arguments" not in str(error):
            raise
        return True


@pytest.mark.parametrize(("arch", "trap"), _by_arch(TRAPS), indirect=["arch"])
def test_what_is_passed_on_as_it_is_springs_the_trap(arch: str, trap: Trap) -> None:
    passed_on = naive if trap.name.startswith("gradients need lse") else less_naive
    assert [case.id for case in trap.cases() if not _wrong(case, passed_on)] == []


@pytest.mark.parametrize(("arch", "trap"), _by_arch([*TRAPS, *RIGHT]), indirect=["arch"])
def test_the_adapter_is_right_or_declines(arch: str, trap: Trap) -> None:
    for case in trap.cases():
        if trap.served:
            assert failures(case, execute) == [], case.id
        else:
            with pytest.raises(UnsupportedError):
                failures(case, execute)
