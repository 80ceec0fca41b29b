"""`apply_rotary` by aiter's fused rope: what it is given, and what comes of it."""

from __future__ import annotations

import sys

import pytest
import torch
from rocm.rotary_recorder import Calls, a_gfx942, recorded_calls, right, tensors  # noqa: F401
from torch import Tensor
from xattn_conformance.case import Case
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles.schema import parse
from xattn_conformance.running import target
from xattn_conformance.running.judge import judge
from xattn_rocm.aiter.apply_rotary import addressable

import xattn

OP = OPS["apply_rotary"]
SMALL = [case for case in (*OP.cases(), *OP.knob_cases()) if case.shape["seqlen_q"] <= 65]
PROFILE = 'schema = 1\nbackend = "aiter"\nhardware = []\n'


@pytest.mark.parametrize("interleaved", [False, True])
def test_q_and_k_go_in_as_views_in_one_launch_and_come_out_contiguous(calls: Calls, interleaved: bool) -> None:
    q, k, cos, sin = tensors()
    out = xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved, backend="aiter")
    ((name, given),) = calls
    assert name == "rope_cached_2c_fwd"
    for passed, mine in zip(given, (q, k, cos, sin), strict=False):
        assert passed.data_ptr() == mine.data_ptr()
    assert given[0].shape == (5, 2, 4, 16)
    assert given[1].shape == (5, 2, 2, 16)
    assert given[2].shape == given[3].shape == (5, 1, 1, 8)
    assert given[4:] == (int(interleaved), True, False, True)
    assert all(x.is_contiguous() for x in out)
    for got, want in zip(out, right(q, k, cos, sin, interleaved), strict=True):
        assert want is not None
        assert torch.equal(got, want)


def test_q_alone_is_one_channel(calls: Calls) -> None:
    q, _, cos, sin = tensors()
    out, nothing = xattn.apply_rotary(q, None, cos, sin, backend="aiter")
    assert nothing is None
    assert [name for name, _ in calls] == ["rope_cached_fwd"]
    assert torch.equal(out, right(q, None, cos, sin, False)[0])


@pytest.mark.parametrize(("batch", "seqlen"), [(3, 5), (1, 5), (4, 1), (1, 1)])
@pytest.mark.parametrize("alone", [False, True])
def test_tables_of_each_batch_row_are_positions_to_aiter(calls: Calls, batch: int, seqlen: int, alone: bool) -> None:
    q, k, cos, sin = tensors(batched=True, batch=batch, seqlen=seqlen)
    second = None if alone else k
    out = xattn.apply_rotary(q, second, cos, sin, backend="aiter")
    ((name, given),) = calls
    assert name == f"rope_cached_positions_{'' if alone else '2c_'}fwd"
    positions = given[3 if alone else 4]
    assert positions.dtype == torch.int64
    assert positions.stride() == (batch, 1)
    assert positions.tolist() == [[row * seqlen + token for row in range(batch)] for token in range(seqlen)]
    for got, want in zip(out, right(q, second, cos, sin, False), strict=True):
        assert got is want is None or torch.equal(got, want)  # type: ignore[arg-type]


@pytest.mark.parametrize("batched", [False, True])
def test_a_table_that_is_not_contiguous_is_copied(calls: Calls, batched: bool) -> None:
    """rope-ignores-table-strides: the first half of a table with each value twice, as sliced by its user."""
    q, k, cos, sin = tensors(batched=batched)
    halves = [torch.cat((table, torch.full_like(table, 99.0)), -1)[..., :8] for table in (cos, sin)]
    out = xattn.apply_rotary(q, k, *halves, backend="aiter")
    for passed in calls[0][1][2:4]:
        assert passed.is_contiguous()
    for got, want in zip(out, right(q, k, cos, sin, False), strict=True):
        assert want is not None
        assert torch.equal(got, want)


def test_strides_go_in_as_they_are(calls: Calls) -> None:
    q, k, cos, sin = tensors()
    fused = torch.cat((q, k, k), 2)
    stored = q.transpose(1, 2).contiguous().transpose(1, 2)
    for a, b in ((fused[:, :, :4], fused[:, :, 4:6]), (stored, k)):
        calls.clear()
        out = xattn.apply_rotary(a, b, cos, sin, backend="aiter")
        assert [calls[0][1][n].data_ptr() for n in (0, 1)] == [a.data_ptr(), b.data_ptr()]
        assert torch.equal(out[0], right(a, b, cos, sin, False)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_that_lie_on_odd_places_are_copied(calls: Calls, dtype: torch.dtype) -> None:
    """aiter loads two 16-bit numbers at once."""
    q, k, cos, sin = tensors(dtype)
    table = cos.to(dtype), sin.to(dtype)
    larger = torch.full((2, 5, 4, 17), 99.0, dtype=dtype)
    larger[..., 1:] = q
    odd = larger[..., 1:]
    row = torch.empty(1 + table[0].numel(), dtype=dtype)[1:].view_as(cos).copy_(table[0])
    out = xattn.apply_rotary(odd, k, row, table[1], backend="aiter")
    copied = calls[0][1][0].data_ptr() != odd.data_ptr()
    assert copied is (dtype != torch.float32)
    assert (calls[0][1][2].data_ptr() != row.data_ptr()) is (dtype != torch.float32)
    assert torch.equal(out[0], right(q, k, *table, False)[0])


@pytest.mark.parametrize(
    ("sizes", "strides", "copied"),
    [
        ((2, 5, 4, 16), (320, 64, 16, 1), False),
        ((2, 5, 4, 16), (2**30 - 400, 64, 16, 1), False),
        ((2, 5, 4, 16), (2**30, 64, 16, 1), True),  # the second row begins 2 GiB on
        ((1, 5, 4, 16), (2**31, 64, 16, 1), False),  # there is no second row
        ((2, 5, 4, 16), (320, 2**29, 16, 1), True),
        ((2, 5, 4, 16), (320, 64, 2**29, 1), True),
    ],
)
def test_a_view_that_reaches_beyond_32_bits_is_copied(
    sizes: tuple[int, ...], strides: tuple[int, ...], copied: bool
) -> None:
    """rope-offsets-of-32-bits"""
    x = torch.empty_strided(sizes, strides, dtype=torch.bfloat16, device="meta")
    assert addressable(x).is_contiguous() is (copied or x.is_contiguous())
    assert (addressable(x) is x) is not copied


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_gradients_are_rotations_back(calls: Calls, interleaved: bool, batched: bool, alone: bool) -> None:
    """rope-autograd-miscounts: aiter's own would raise."""
    q, k, cos, sin = tensors(batched=batched)
    leaves = [x.requires_grad_() for x in ((q,) if alone else (q, k))]

    def gradients(rotated: tuple[Tensor, Tensor | None]) -> tuple[Tensor, ...]:
        outs = [x for x in rotated if x is not None]
        generator = torch.Generator().manual_seed(1)
        # Incoming gradients whose last dimension is not dense.
        incoming = [torch.randn(x.shape[::-1], generator=generator).to(x.dtype).permute(3, 2, 1, 0) for x in outs]
        return torch.autograd.grad(outs, leaves, incoming)

    found = gradients(xattn.apply_rotary(q, None if alone else k, cos, sin, interleaved=interleaved, backend="aiter"))
    assert len(calls) == 2
    wanted = gradients(right(q, None if alone else k, cos, sin, interleaved))
    assert all(torch.equal(got, want) for got, want in zip(found, wanted, strict=True))


def test_a_gradient_of_a_gradient(calls: Calls) -> None:
    q, k, cos, sin = tensors(torch.float32)
    q.requires_grad_()

    def twice(rotated: Tensor) -> Tensor:
        (dq,) = torch.autograd.grad((rotated**2).sum(), q, create_graph=True)
        (ddq,) = torch.autograd.grad((dq**3).sum(), q)
        return ddq

    got = twice(xattn.apply_rotary(q, k, cos, sin, backend="aiter")[0])
    torch.testing.assert_close(got, twice(right(q, k, cos, sin, False)[0]))
    assert len(calls) >= 4


def test_training_keeps_the_tables_alone() -> None:
    q, k, cos, sin = tensors()
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        xattn.apply_rotary(q.requires_grad_(), k.requires_grad_(), cos, sin, backend="aiter")
    assert [x.data_ptr() for x in kept] == [cos.data_ptr(), sin.data_ptr()]


def test_a_compiled_call_is_left_to_the_compiler(calls: Calls) -> None:
    """rope-declares-inputs-written"""
    given = tensors()
    compiled = torch.compile(lambda *x: xattn.apply_rotary(*x)[0], fullgraph=True, backend="aot_eager")
    plain = xattn.apply_rotary(*given, backend="reference")[0]
    assert torch.equal(compiled(*given), plain)
    assert not calls
    # By name it breaks the graph, and rotates in between.
    named = torch.compile(lambda *x: xattn.apply_rotary(*x, backend="aiter")[0] + 0, backend="aot_eager")
    assert torch.equal(named(*given), plain)
    assert len(calls) == 1


def test_auto_takes_aiter_where_it_can(calls: Calls) -> None:
    xattn.apply_rotary(*tensors())
    assert len(calls) == 1
    wide = tensors(torch.float32)
    q, k = (x.double() for x in wide[:2])
    xattn.apply_rotary(q, k, *wide[2:])
    assert len(calls) == 1


@pytest.mark.extended
@pytest.mark.parametrize("case", SMALL[::2], ids=lambda case: case.id)
def test_the_suites_cases_pass_on_the_stand_in(case: Case) -> None:
    result = judge(case, target.make("aiter", "cpu", parse(PROFILE)))
    declined = 0 in case.shape.values() or _tail(case)
    assert result.status == ("UNSUPPORTED" if declined else "PASS"), result.message + result.detail
    assert not result.left_out


def _tail(case: Case) -> bool:
    rest: int = case.shape["headdim"] - case.options.get("rotary_dim", case.shape["headdim"])
    return rest % (4 if case.options.get("interleaved") else 2) != 0


def test_the_stand_in_shows_the_traps() -> None:
    """What the adapter keeps away from: without it, the stand-in is as wrong as aiter."""
    module = sys.modules["aiter"]
    q, k, cos, sin = tensors(torch.float32, rotary_dim=6)
    x, y = q.transpose(0, 1)[..., :9], k.transpose(0, 1)[..., :9]
    out, _ = module.rope_cached_2c_fwd(x, y, cos.view(5, 1, 1, 3), sin.view(5, 1, 1, 3), 0, True, False, True)
    assert not out.isnan().any()  # 3 pairs: a vector of 1
    cos, sin = torch.randn(5, 4), torch.randn(5, 4)
    out, _ = module.rope_cached_2c_fwd(x, y, cos.view(5, 1, 1, 4), sin.view(5, 1, 1, 4), 0, True, False, True)
    assert out[..., 8].isnan().all()
    sliced = torch.cat((cos, cos + 9), -1)[:, :4]
    other, _ = module.rope_cached_2c_fwd(x, y, sliced[:, None, None], sin.view(5, 1, 1, 4), 0, True, False, True)
    assert not torch.equal(other[..., :8], out[..., :8])
