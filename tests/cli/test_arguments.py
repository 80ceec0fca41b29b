"""`xattn explain OP NAME=VALUE ...`: a call of any op, with arguments by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cli.command_line import Run, plain
from support import qkv

import xattn
from xattn.cli.arguments import arguments_of
from xattn.dispatch.op import Op, Prepared
from xattn.ops.table import OPS
from xattn.plugin.devices import device_and_arch

Q, K, V = qkv(nheads_k=2)
QKV = ["q=2,4,4,8", "k=2,4,2,8", "v=2,4,2,8"]
COS = torch.zeros(4, 4)
BOUNDS = ["max_seqlen_q=4", "max_seqlen_k=4"]
ROTARY = ["apply_rotary", "q=2,4,4,8", "k=2,4,2,8", "cos=4,4", "sin=4,4"]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (ROTARY, lambda: xattn.explain(xattn.apply_rotary, Q, K, COS, COS)),
        (
            ["apply_rotary", "q=2,4,4,8", "k=none", "cos=2,4,3", "sin=2,4,3", "interleaved=true"],
            lambda: xattn.explain(
                xattn.apply_rotary, Q, None, torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), interleaved=True
            ),
        ),
        (
            [
                "apply_rotary",
                "q=2,4,4,8:bf16:grad",
                "k=2,4,2,8",
                "cos=4,4:float32",
                "sin=4,4:float32",
                "--dtype",
                "bf16",
            ],
            lambda: xattn.explain(xattn.apply_rotary, Q.bfloat16().requires_grad_(), K.bfloat16(), COS, COS),
        ),
        (
            ROTARY + ["--backend", "reference"],
            lambda: xattn.explain(xattn.apply_rotary, Q, K, COS, COS, backend="reference"),
        ),
        (
            ["varlen_attention", "q=9,4,8", "k=9,2,8", "v=9,2,8", "cu_seqlens_q=4:int32", *BOUNDS, "align=3:int32"],
            lambda: xattn.explain(
                xattn.varlen_attention,
                *(torch.zeros(9, heads, 8) for heads in (4, 2, 2)),
                torch.tensor([0, 3, 7, 9], dtype=torch.int32),
                max_seqlen_q=4,
                max_seqlen_k=4,
                align=torch.zeros(3, dtype=torch.int32),
            ),
        ),
        (QKV, lambda: xattn.explain(Q, K, V)),
        (["attention", *QKV, "causal=true"], lambda: xattn.explain(xattn.attention, Q, K, V, causal=True)),
        (["attention", *QKV, "window=2,none"], lambda: xattn.explain(Q, K, V, window=(2, None))),
        (["attention", *QKV, "causal=True", "align=-1"], lambda: xattn.explain(Q, K, V, causal=True, align=-1)),
        (
            ["attention", *QKV, "window=0,0", "align='top_left'"],
            lambda: xattn.explain(Q, K, V, window=(0, 0), align="top_left"),
        ),
        (["attention", *QKV, "scale=0.5", "softcap=2e1"], lambda: xattn.explain(Q, K, V, scale=0.5, softcap=20.0)),
        (["attention", *QKV, "sinks=4"], lambda: xattn.explain(Q, K, V, sinks=torch.zeros(4))),
        (["attention", *QKV, "sinks=4:grad"], lambda: xattn.explain(Q, K, V, sinks=torch.zeros(4, requires_grad=True))),
        (
            ["attention", *QKV, "seqlens_k=2:int32"],
            lambda: xattn.explain(Q, K, V, seqlens_k=torch.ones(2, dtype=torch.int32)),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_explain_json_is_explain(run: Run, words: list[str], call: Any) -> None:
    result = run("explain", *words, "--json")
    assert json.loads(result.stdout) == plain(call().as_dict())
    assert result.exit_code == 0


def test_explain_of_an_op_for_a_device_that_is_not_here(run: Run) -> None:
    result = run("explain", *ROTARY, "--device", "rocm", "--arch", "gfx942")
    assert result.exit_code == 0
    assert "rocm gfx942" in result.stdout
    assert "Backend  reference" in result.stdout
    without = xattn.explain(xattn.apply_rotary, Q, K, COS, COS).stopped_by("op")
    assert "Without apply_rotary: " + ", ".join(candidate.name for candidate in without) in result.stdout
    assert device_and_arch(torch.device("meta")) == ("meta", None)  # and nothing is left of it


def test_1_the_chosen_backend_does_not_have_the_op(run: Run) -> None:
    result = run("explain", *ROTARY, "--backend", "aiter-triton")
    assert result.exit_code == 1
    assert "No backend can serve this call" in result.stdout
    assert json.loads(run("explain", *ROTARY, "--backend", "aiter-triton", "--json").stdout)["backend"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["apply_rotry", "q=1"],
            "there is no op 'apply_rotry'. Did you mean apply_rotary? There are: attention, apply_rotary,",
        ),
        (["warp"], "there is no op 'warp'"),
        (["apply_rotary"], "q, k, cos, sin missing; the arguments are: q, k, cos, sin, interleaved"),
        (["apply_rotary", "q=2,4,4,8", "k=none"], "cos, sin missing"),
        ([*ROTARY, "theta=1"], "there is no argument 'theta'; the arguments are: q, k, cos, sin, interleaved"),
        ([*ROTARY, "interleaved"], "'interleaved' is not NAME=VALUE"),
        ([*ROTARY, "q=1,1,1,2"], "q: given twice"),
        ([*ROTARY, "interleaved=maybe"], "interleaved: got 'maybe', want True or False"),
        (["apply_rotary", "q=wide", "k=none", "cos=4,4", "sin=4,4"], "'wide' is not whole numbers >= 0"),
        (["apply_rotary", "q=2,-4,4,8", "k=none", "cos=4,4", "sin=4,4"], "'2,-4,4,8' is not whole numbers >= 0"),
        (
            ["apply_rotary", "q=2,4,4,8", "k=none", "cos=4,5", "sin=4,5"],
            "cos: got shape (4, 5), want (seqlen, rotary_dim / 2)",
        ),
        (["apply_rotary", "q=2,4,4,8:float33", "k=none"], "torch has no dtype 'float33'"),
        (["apply_rotary", "q=2,4,4,8:bf16:fp16", "k=none"], "'2,4,4,8:bf16:fp16' has two dtypes"),
        (["apply_rotary", "q=2,4,4,8:int32:grad", "k=none"], "have no gradient"),
        (["apply_rotary", "q=none", "k=none", "cos=4,4", "sin=4,4"], "q: got None, want a torch.Tensor"),
        (["varlen_attention", "q=9,4,8", "k=9,4,8", "v=9,4,8", "cu_seqlens_q=4:int32"], "max_seqlen_q: got None"),
        ([*QKV, "window=4"], "window: got 4, want (left, right)"),
        ([*QKV, "align=0.5"], "align: got 0.5"),
        ([*QKV, "mask=4,4"], "mask: got float32, want bool"),
        ([*ROTARY, "--causal"], "--causal: not beside an op's name or arguments as NAME=VALUE"),
        ([*QKV, "--shape", "2,4,4,8"], "--shape: not beside"),
        ([*ROTARY, "--dtype", "float33"], "torch has no dtype 'float33'"),
        ([*ROTARY, "--device", "abacus"], "'abacus' is no device"),
        ([*ROTARY, "--backend", "referenc"], 'Did you mean "reference"'),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_2_wrong_usage(run: Run, words: list[str], message: str) -> None:
    result = run("explain", *words, "--json", columns=300)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_every_argument_of_an_op_has_a_type_that_says_what_a_word_is(op: Op) -> None:
    """Types are looked up when a command runs: what they are made of must not be imported for type checkers alone."""
    for parameter in inspect.signature(op.prepare, eval_str=True).parameters.values():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), parameter
        assert parameter.annotation not in (parameter.empty, Any), parameter


def several(
    outs: Sequence[torch.Tensor],
    lses: list[torch.Tensor],
    align: int | torch.Tensor = 0,
    scale: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Prepared:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("outs=2,4,4,8+2,4,4,8:float32", [((2, 4, 4, 8), torch.float16), ((2, 4, 4, 8), torch.float32)]),
        ("outs=2,4,4,8", [((2, 4, 4, 8), torch.float16)]),
        ("align=3", 3),
        ("align=2:int32", ((2,), torch.int32)),
        ("scale=:float32", ((), torch.float32)),
        ("scale=7", ((7,), torch.float16)),
        ("out_dtype=bf16", torch.bfloat16),
        ("out_dtype=none", None),
    ],
)
def test_lists_of_tensors_and_what_may_be_a_tensor_or_a_number(word: str, wanted: object) -> None:
    op = Op(several, OPS["attention"].request, several)
    found = arguments_of(op, ["outs=1", "lses=1", word] if word[:4] != "outs" else ["lses=1", word], torch.float16)

    def seen(value: object) -> object:
        if isinstance(value, list):
            return list(map(seen, value))
        return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value

    assert seen(found[word.partition("=")[0]]) == wanted
