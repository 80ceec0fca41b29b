"""The reference backend on cases small enough to work out by hand, and what no oracle can say: dropout, repetition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tolerance
import torch
from ops.attention.attention_call import AttentionCall, array
from torch import Tensor
from xattn_conformance.ops.attention import rowwise

import xattn


def column(*values: float) -> Tensor:
    """One number a position: (1, len(values), 1, 1) in float64."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> xattn.AttentionOutput:
    found: xattn.AttentionOutput = xattn.attention(q, k, v, return_lse=True, backend="reference", **arguments)
    return found


def log(x: float) -> float:
    return math.log(x)


# One query of 1 and keys of 0 and ln 3 give the scores 0 and ln 3, so the weights 1 : 3, over the values 1 and 5.
@pytest.mark.parametrize(
    ("arguments", "out", "lse"),
    [
        pytest.param({}, (1 + 3 * 5) / 4, log(4), id="plain"),
        # Scores 0 and 2 ln 3: weights 1 : 9.
        pytest.param({"scale": 2.0}, (1 + 9 * 5) / 10, log(10), id="scale"),
        # Scores 0 and -ln 3: weights 3 : 1.
        pytest.param({"scale": -1.0}, (3 * 1 + 5) / 4, log(4 / 3), id="negative scale"),
        # All scores 0: the mean. 0.0 is a scale, not "off".
        pytest.param({"scale": 0.0}, 3.0, log(2), id="zero scale"),
        # 1 + 3 and a sink of 4 make 8: the sink takes half of the weight and has no value.
        pytest.param({"sinks": [log(4)]}, (1 + 3 * 5) / 8, log(8), id="sink"),
        # The sink is neither scaled nor capped: scores 0, a sink of ln 4, 1 + 1 + 4.
        pytest.param({"sinks": [log(4)], "scale": 0.0, "softcap": 0.1}, (1 + 5) / 6, log(6), id="sink unscaled"),
        # Bias ln 6 on key 0: weights 6 : 3.
        pytest.param({"bias": [log(6), 0.0]}, (6 * 1 + 3 * 5) / 9, log(9), id="bias"),
        pytest.param({"bias": [0.0, -math.inf]}, 1.0, 0.0, id="bias masks"),
        # However low, a finite bias does not mask: both keys at -1e30 share as their equal scores say.
        pytest.param({"bias": [-1e30, -1e30], "scale": 0.0}, 3.0, -1e30, id="low bias"),
        pytest.param({"bias": [torch.finfo(torch.float32).min] * 2, "scale": 0.0}, 3.0, -(2.0**128), id="lowest bias"),
        pytest.param({"mask": [False, True]}, 5.0, log(3), id="mask"),
        pytest.param({"seqlens_k": [1]}, 1.0, 0.0, id="seqlens_k"),
        # Bottom right: the only query stands at key 1. Slope ln 2 takes a half from key 0, nothing from key 1.
        pytest.param({"alibi_slopes": [log(2)]}, (0.5 + 3 * 5) / 3.5, log(3.5), id="alibi"),
        # Top left: it stands at key 0, so key 1 loses a half.
        pytest.param(
            {"alibi_slopes": [log(2)], "align": "top_left"}, (1 + 1.5 * 5) / 2.5, log(2.5), id="alibi top left"
        ),
        # One valid key: the query stands at it, under bottom right.
        pytest.param({"alibi_slopes": [log(2)], "seqlens_k": [1]}, 1.0, 0.0, id="alibi and seqlens_k"),
    ],
)
def test_one_query_two_keys(arguments: dict[str, Any], out: float, lse: float) -> None:
    dtypes = {"sinks": torch.float64, "bias": torch.float64, "alibi_slopes": torch.float32}
    tensors = {
        name: torch.tensor(value, dtype=dtypes.get(name)) if isinstance(value, list) else value
        for name, value in arguments.items()
    }
    answer = attend(column(1), column(0, log(3)), column(1, 5), **tensors)
    # A slope is a float32: ln 2 is rounded, where nothing else is.
    rel = 1e-7 if "alibi_slopes" in arguments else 1e-15
    assert answer.out.item() == pytest.approx(out, rel=rel)
    assert answer.lse.item() == pytest.approx(lse, rel=2**-23, abs=1e-30)


def test_default_scale_is_one_over_the_root_of_headdim() -> None:
    # headdim 4, so the scale is 1/2, whatever headdim_v is: q . k = 2 ln 3 is the score ln 3.
    q = torch.tensor([2 * log(3), 9, 9, 9], dtype=torch.float64).reshape(1, 1, 1, 4)
    k = torch.zeros(1, 2, 1, 4, dtype=torch.float64)
    k[0, 1, 0, 0] = 1
    assert attend(q, k, column(1, 5)).out.item() == pytest.approx(4.0, rel=1e-15)


def test_softcap_comes_after_scale_and_before_bias() -> None:
    # Score 2 * 3 = 6, capped to 0.5 tanh(12) = 0.5 (to 4e-11), plus ln 3 - 0.5: weight 3 against key 0's weight 1.
    # Capped after the bias it would be at most e^0.5; capped before the scale, tanh(6) is 1 and the scale doubles 0.5.
    answer = attend(
        column(3), column(0, 1), column(1, 5), scale=2.0, softcap=0.5, bias=torch.tensor([0.0, log(3) - 0.5])
    )
    assert answer.out.item() == pytest.approx(4.0, rel=1e-7)
    # Far below the cap it changes nothing: c tanh(s / c) = s - s^3 / (3 c^2).
    assert attend(column(1), column(0, log(3)), column(1, 5), softcap=1e6).out.item() == pytest.approx(4.0, rel=1e-11)


def visible(seqlen_q: int, seqlen_k: int, batch: int = 1, **arguments: Any) -> list[list[str]]:
    """The visible keys of every query, read from the output.

    All scores are 0, so a query's out is the mean of the values it sees and exp(lse) is their number. The value of key
    j is 2^j, so the sum's binary digits are the visible keys.
    """
    q = torch.zeros(batch, seqlen_q, 1, 1, dtype=torch.float64)
    k = torch.zeros(batch, seqlen_k, 1, 1, dtype=torch.float64)
    v = (2.0 ** torch.arange(seqlen_k, dtype=torch.float64)).reshape(1, -1, 1, 1).expand(batch, -1, 1, 1)
    out, lse = attend(q, k, v, **arguments)
    sums = (out[:, :, 0, 0] * lse[:, 0].double().exp()).round().long()
    assert torch.equal(lse[:, 0] == -torch.inf, sums == 0)
    return [
        ["".join("1" if (total >> j) & 1 else "." for j in range(seqlen_k)) for total in row.tolist()] for row in sums
    ]


@pytest.mark.parametrize(
    ("seqlen_q", "seqlen_k", "arguments", "table"),
    [
        (3, 3, {"causal": True}, "1.. 11. 111"),
        (2, 5, {"causal": True}, "1111. 11111"),
        (2, 5, {"causal": True, "align": "top_left"}, "1.... 11..."),
        # Five queries, two keys, off = -3: the first three see nothing.
        (5, 2, {"causal": True}, ".. .. .. 1. 11"),
        (5, 2, {"causal": True, "align": "top_left"}, "1. 11 11 11 11"),
        (4, 4, {"window": (1, 0)}, "1... 11.. .11. ..11"),
        (4, 4, {"window": (0, 0)}, "1... .1.. ..1. ...1"),
        (4, 4, {"window": (0, 1)}, "11.. .11. ..11 ...1"),
        (4, 4, {"window": (1, None)}, "1111 1111 .111 ..11"),
        (4, 4, {"window": (None, 1)}, "11.. 111. 1111 1111"),
        (4, 4, {"window": (None, None)}, "1111 1111 1111 1111"),
        # causal is the nearer right edge.
        (4, 4, {"window": (1, 2), "causal": True}, "1... 11.. .11. ..11"),
        # off = 2: query i stands at key i + 2.
        (2, 4, {"window": (1, 0)}, ".11. ..11"),
        (2, 4, {"window": (1, 0), "align": "top_left"}, "1... 11.."),
        # off = -2.
        (4, 2, {"window": (1, 0)}, ".. .. 1. 11"),
        (4, 2, {"window": (0, 1)}, ".. 1. 11 .1"),
        # Without a band the alignment says nothing.
        (2, 4, {"align": "top_left"}, "1111 1111"),
    ],
)
def test_visible_keys(seqlen_q: int, seqlen_k: int, arguments: dict[str, Any], table: str) -> None:
    assert visible(seqlen_q, seqlen_k, **arguments) == [table.split()]


def test_seqlens_k_moves_the_diagonal_of_its_row() -> None:
    lengths = torch.tensor([3, 1, 0, 4])
    assert visible(2, 4, batch=4, causal=True, seqlens_k=lengths) == [
        ["11..", "111."],  # off = 1
        ["....", "1..."],  # off = -1
        ["....", "...."],
        ["111.", "1111"],  # off = 2
    ]
    assert visible(2, 4, batch=4, causal=True, seqlens_k=lengths, align="top_left") == [
        ["1...", "11.."],
        ["1...", "1..."],
        ["....", "...."],
        ["1...", "11.."],
    ]


def test_query_heads_share_key_heads_in_blocks() -> None:
    # Six query heads on two key heads, each with one key: out is the value of head h // 3.
    v = torch.tensor([10.0, 20.0]).reshape(1, 1, 2, 1)
    out = attend(torch.ones(1, 1, 6, 1), torch.ones(1, 1, 2, 1), v).out
    assert out.flatten().tolist() == [10, 10, 10, 20, 20, 20]


def test_dead_rows_have_the_sink_for_lse() -> None:
    q, k, v = torch.ones(1, 2, 2, 3), torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3)
    mask = torch.tensor([[False, False], [True, False]])
    dead = attend(q, k, v, mask=mask)
    assert dead.out[0, 0].eq(0).all()
    assert dead.lse[0, :, 0].tolist() == [-math.inf, -math.inf]
    assert attend(q, k, v, mask=mask, sinks=torch.tensor([0.25, -3.0])).lse[0, :, 0].tolist() == [0.25, -3.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_accuracy_at_a_larger_size(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, 21, 4, 32), (2, 34, 2, 32), (2, 34, 2, 24))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    call = AttentionCall(q, k, v, {"causal": True, "scale": 0.5}, {})
    out, lse = attend(q, k, v, **call.arguments)
    want_out, want_lse = rowwise.forward(call.problem)
    out_bound, lse_bound = tolerance.forward(call.problem, dtype)
    assert (abs(array(out) - want_out) <= out_bound).all()
    assert (abs(array(lse) - want_lse) <= lse_bound).all()
    if dtype == torch.float64:
        # The bounds themselves are tight where nothing rounds to a narrower type.
        assert out_bound.max() < 1e-12


def test_large_logits_do_not_overflow() -> None:
    # Scores 1000 + ln 3 and 1000: weights 3 : 1, and exp(1000) is infinite.
    answer = attend(column(1), column(1000, 1000 + log(3)), column(1, 5))
    assert answer.out.item() == pytest.approx(4.0, rel=1e-12)
    assert answer.lse.item() == pytest.approx(1000 + log(4), rel=1e-7)


# Dropout. Of N independent draws with probability p, the share of zeros is normal about p with a standard deviation of
# sqrt(p (1 - p) / N); five of them are passed once in 1.7 million seeds, and the seed is fixed.
P = 0.3
DRAWS = 40_000
FIVE_SIGMA = 5 * math.sqrt(P * (1 - P) / DRAWS)


def test_dropout_zeroes_weights_at_its_rate_and_rescales_the_rest() -> None:
    # One key of value 1 and weight 1 for each of 40,000 queries: out is the dropout factor itself.
    torch.manual_seed(0)
    q, one = torch.zeros(2, 5_000, 4, 1), torch.ones(2, 1, 4, 1)
    out, lse = attend(q, one, one, dropout_p=P)
    dropped = out == 0
    assert torch.allclose(out[~dropped], torch.tensor(1 / (1 - P)), rtol=1e-6)
    assert abs(dropped.double().mean().item() - P) < FIVE_SIGMA
    # The mean is preserved: its deviation is that of the share of zeros, over (1 - p).
    assert abs(out.double().mean().item() - 1) < FIVE_SIGMA / (1 - P)
    assert (lse == 0).all()
    # Independent in batch, query and head: two neighbours agree with probability p^2 + (1 - p)^2.
    agree = P**2 + (1 - P) ** 2
    for dim in range(3):
        first, second = dropped.narrow(dim, 0, dropped.shape[dim] - 1), dropped.narrow(dim, 1, dropped.shape[dim] - 1)
        bound = 5 * math.sqrt(agree * (1 - agree) / (first.numel() / 2))
        assert abs((first == second).double().mean().item() - agree) < bound


def test_dropout_comes_after_the_softmax() -> None:
    # Weights 1/8, 3/8 and 1/2 for the sink, values 1 and 10: each survives or not, and nothing is normalised anew.
    torch.manual_seed(0)
    q = torch.ones(1, 1000, 1, 1)
    sinks = torch.tensor([log(4)])
    out, lse = attend(q, column(0, log(3)).float(), column(1, 10).float(), sinks=sinks, dropout_p=0.5)
    sums = [0, 2 * (1 / 8), 2 * (30 / 8), 2 * (31 / 8)]
    nearest = (out.flatten()[:, None] - torch.tensor(sums)).abs().min(dim=1)
    assert nearest.values.max() < 1e-5
    assert nearest.indices.unique().tolist() == [0, 1, 2, 3]
    assert torch.allclose(lse, torch.tensor(log(8)))


def test_dropout_gradients_use_the_same_draw() -> None:
    torch.manual_seed(0)
    q, k = torch.zeros(1, 1, 64, 1), torch.ones(1, 1, 64, 1)
    v = torch.ones(1, 1, 64, 1, requires_grad=True)
    out = attend(q, k, v, dropout_p=0.5).out
    (dv,) = torch.autograd.grad(out.sum(), v)
    assert torch.equal(dv, out)  # one weight a head: out = factor * v, and v is 1
    assert 0 < (out == 0).sum() < 64


def test_deterministic_repeats_bitwise() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"q": (2, 65, 6, 24), "k": (2, 130, 2, 24), "v": (2, 130, 2, 40), "bias": (1, 6, 65, 130), "sinks": (6,)}
    leaves = {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}

    def once() -> list[Tensor]:
        out, lse = attend(**leaves, causal=True, softcap=5.0, deterministic=True)
        return [out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), list(leaves.values()))]

    first = once()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))
