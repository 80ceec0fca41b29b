"""apply_rotary: the contract against a complex product in float64, the choice of a backend, and the errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support import Load, backend_source, run_python, stranger
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from xattn.rotary import call as memory
from xattn.rotary import plain, selection

import xattn
from xattn import plans

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Half a unit in the last place of 1, as the largest relative error of one rounding.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    plans.clear()
    yield
    plans.clear()


def tensors(
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    seqlen: int = 5,
    nheads: int = 4,
    nheads_k: int = 2,
    headdim: int = 16,
    rotary_dim: int = 16,
    batched: bool = False,
    table: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, cos, sin, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, seqlen, nheads, headdim, generator=generator, dtype=torch.float64)
    k = torch.randn(batch, seqlen, nheads_k, headdim, generator=generator, dtype=torch.float64)
    rows = (batch, seqlen) if batched else (seqlen,)
    angle = 10 * torch.rand(*rows, rotary_dim // 2, generator=generator, dtype=torch.float64)
    kind = table or torch.float32
    return q.to(dtype), k.to(dtype), angle.cos().to(kind), angle.sin().to(kind)


def turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x as complex numbers times cos + i sin, in float64: the oracle."""
    width = 2 * cos.shape[-1]
    front, rest = x.double()[..., :width], x.double()[..., width:]
    by = torch.complex(cos.double(), sin.double())[..., None, :]
    if interleaved:
        z = torch.view_as_complex(front.reshape(*front.shape[:-1], -1, 2)) * by
        return torch.cat((torch.view_as_real(z).flatten(-2), rest), -1)
    z = torch.complex(*(half.contiguous() for half in front.chunk(2, -1))) * by
    return torch.cat((z.real, z.imag, rest), -1)


def close(got: Tensor, want: Tensor, dtype: torch.dtype, size: float = 6.0) -> None:
    """One rounding to the dtype, and three in float32 of numbers that are no larger than `size`."""
    wide = UNIT[torch.float64 if dtype == torch.float64 else torch.float32]
    bound = UNIT[dtype] * want.abs() + 3 * wide * size + 2.0**-25 * (dtype == torch.float16)
    assert bool(((got.double() - want).abs() <= bound).all()), (got.double() - want).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [2, 8, 16])
@pytest.mark.parametrize("batched", [False, True])
def test_both_are_rotated_and_rounded_once(
    dtype: torch.dtype, interleaved: bool, rotary_dim: int, batched: bool
) -> None:
    q, k, cos, sin = tensors(dtype, rotary_dim=rotary_dim, batched=batched)
    before = [x.clone() for x in (q, k, cos, sin)]
    for given, got in zip((q, k), xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved), strict=True):
        assert got.dtype == dtype
        assert got.is_contiguous()
        close(got, turned(given, cos, sin, interleaved), dtype)
        assert torch.equal(got[..., rotary_dim:], given[..., rotary_dim:])
    assert all(torch.equal(x, y) for x, y in zip((q, k, cos, sin), before, strict=True))


def test_the_halves_of_llama_in_transformers() -> None:
    """q cos + rotate_half(q) sin, with tables that have each value twice."""
    q, k, cos, sin = tensors(torch.float64, table=torch.float64)
    full_cos, full_sin = (torch.cat((x, x), -1)[:, None] for x in (cos, sin))
    want = q * full_cos + torch.cat((-q[..., 8:], q[..., :8]), -1) * full_sin
    torch.testing.assert_close(xattn.apply_rotary(q, k, cos, sin)[0], want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("table", [torch.float16, torch.bfloat16, torch.float64])
def test_a_table_in_the_dtype_of_q_is_taken_as_it_is(table: torch.dtype) -> None:
    q, k, cos, sin = tensors(table, table=table)
    close(xattn.apply_rotary(q, k, cos, sin)[0], turned(q, cos, sin, False), table)


def test_what_passes_through_keeps_every_bit() -> None:
    q, k, cos, sin = tensors(rotary_dim=8)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 2.0**-149, -(2.0**-140), 3.4e38, 0.0])
    q[..., 8:] = odd
    got, _ = xattn.apply_rotary(q, k, cos, sin)
    assert torch.equal(got[..., 8:].view(torch.int32), q[..., 8:].view(torch.int32))
    assert got[..., :8].isfinite().all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 16])
def test_strides_change_no_bit(interleaved: bool, rotary_dim: int) -> None:
    q, k, cos, sin = tensors(torch.bfloat16, rotary_dim=rotary_dim, batched=True)

    def moved(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def cut(x: Tensor) -> Tensor:
        larger = torch.full([size + 1 for size in x.shape], float("nan"), dtype=x.dtype)
        larger[(slice(1, None),) * x.dim()] = x
        return larger[(slice(1, None),) * x.dim()]

    want = xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)
    for a, b in ((moved(q), cut(k)), (cut(q), moved(k))):
        got = xattn.apply_rotary(a, b, cut(cos), cut(sin), interleaved=interleaved)
        assert all(torch.equal(x, y) and x.is_contiguous() for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("interleaved", [False, True])
def test_out_is_contiguous_where_torch_would_keep_another_order(interleaved: bool) -> None:
    """With one pair a tensor stored as (batch, nheads, seqlen, 2) looks channels-last to torch, which keeps to that."""
    q, k, cos, sin = tensors(headdim=2, rotary_dim=2)
    stored = q.transpose(1, 2).contiguous().transpose(1, 2)
    got, _ = xattn.apply_rotary(stored, k, cos, sin, interleaved=interleaved)
    assert got.is_contiguous()
    close(got, turned(q, cos, sin, interleaved), torch.float32)


def test_both_styles_in_turn() -> None:
    q, k, cos, sin = tensors()
    for _ in range(2):
        for interleaved in (True, False):
            got, _ = xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)
            close(got, turned(q, cos, sin, interleaved), torch.float32)


@pytest.mark.parametrize("interleaved", [False, True])
def test_q_alone(interleaved: bool) -> None:
    q, k, cos, sin = tensors()
    got, nothing = xattn.apply_rotary(q, None, cos, sin, interleaved=interleaved)
    assert nothing is None
    assert torch.equal(got, xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)[0])
    # The other kind of call of this shape, remembered in between.
    assert torch.equal(got, xattn.apply_rotary(q, None, cos, sin, interleaved=interleaved)[0])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("batched", [False, True])
def test_nothing_to_rotate(shape: tuple[int, int], batched: bool) -> None:
    q, k, cos, sin = tensors(batch=shape[0], seqlen=shape[1], rotary_dim=8, batched=batched)
    got = xattn.apply_rotary(q.requires_grad_(), k, cos, sin)
    assert [x.shape for x in got] == [q.shape, k.shape]
    got[0].sum().backward()
    assert q.grad is not None


def test_a_rotation_back() -> None:
    q, k, cos, sin = tensors(torch.float64, table=torch.float64)
    there = xattn.apply_rotary(q, k, cos, sin)
    back = xattn.apply_rotary(*there, cos, -sin)
    torch.testing.assert_close(back, (q, k), rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [8, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_rotation_back_rounded_once(dtype: torch.dtype, interleaved: bool, rotary_dim: int) -> None:
    q, k, cos, sin = tensors(dtype, rotary_dim=rotary_dim, batched=True)
    dq, dk = (torch.randn(x.shape, generator=torch.Generator().manual_seed(n)).to(dtype) for n, x in enumerate((q, k)))
    out = xattn.apply_rotary(q.requires_grad_(), k.requires_grad_(), cos, sin, interleaved=interleaved)
    for got, given in zip(torch.autograd.grad(out, (q, k), (dq, dk)), (dq, dk), strict=True):
        close(got, turned(given, cos, -sin, interleaved), dtype)
        assert torch.equal(got[..., rotary_dim:], given[..., rotary_dim:])


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_of_any_order(interleaved: bool) -> None:
    q, k, cos, sin = tensors(torch.float64, batch=1, seqlen=2, nheads=1, nheads_k=1, headdim=6, rotary_dim=4)

    def rotated(q: Tensor, k: Tensor) -> Any:
        return xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved)

    leaves = (q.requires_grad_(), k.requires_grad_())
    assert torch.autograd.gradcheck(rotated, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rotated, leaves)


def test_training_keeps_the_tables_alone() -> None:
    q, k, cos, sin = tensors(torch.bfloat16, seqlen=64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        xattn.apply_rotary(q.requires_grad_(), k.requires_grad_(), cos, sin)
    assert kept
    assert max(x.untyped_storage().nbytes() for x in kept) <= cos.untyped_storage().nbytes()


def test_only_k_wants_a_gradient() -> None:
    q, k, cos, sin = tensors()
    out, out_k = xattn.apply_rotary(q, k.requires_grad_(), cos, sin)
    assert not out.requires_grad
    assert out_k.requires_grad


def test_vmap() -> None:
    q, k, cos, sin = tensors()
    stacked = torch.stack((q, 2 * q))
    got = torch.func.vmap(lambda x: xattn.apply_rotary(x, k, cos, sin)[0])(stacked)
    assert torch.equal(got, torch.stack([xattn.apply_rotary(x, k, cos, sin)[0] for x in stacked]))


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile, autocast, FakeTensor, memory between calls
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference", ("reference",)])
def test_a_compiled_call_in_one_graph(interleaved: bool, backend: Any) -> None:
    q, k, cos, sin = tensors(rotary_dim=8)
    q.requires_grad_()

    def rotated(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return xattn.apply_rotary(q, k, cos, sin, interleaved=interleaved, backend=backend)

    compiled = torch.compile(rotated, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(q, k), rotated(q, k), strict=True):
        assert torch.equal(got, want)
    (dq,) = torch.autograd.grad(compiled(q, k)[0].sum(), q)
    (want,) = torch.autograd.grad(rotated(q, k)[0].sum(), q)
    torch.testing.assert_close(dq, want)


def test_a_compiled_call_of_any_length() -> None:
    compiled = torch.compile(
        lambda *given: xattn.apply_rotary(*given)[0], fullgraph=True, backend="aot_eager", dynamic=True
    )
    for seqlen in (5, 7, 9):
        given = tensors(seqlen=seqlen)
        assert torch.equal(compiled(*given), xattn.apply_rotary(*given)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_leaves_the_dtype_of_q(dtype: torch.dtype) -> None:
    given = tensors(dtype, rotary_dim=8)
    want = xattn.apply_rotary(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = xattn.apply_rotary(*given)
    assert all(x.dtype == dtype and torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_a_fake_call_leaves_nothing_behind() -> None:
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in tensors()]
        assert xattn.apply_rotary(*fake)[0].shape == fake[0].shape
    assert not memory._recent


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, cos, sin: (q, k, cos.half().float()[..., :4].contiguous(), sin[..., :4].contiguous()),
        lambda q, k, cos, sin: (q.half(), k.half(), cos, sin),
        lambda q, k, cos, sin: (q, k[:, :, :1], cos, sin),
        lambda q, k, cos, sin: (q, k, cos.expand(2, -1, -1), sin.expand(2, -1, -1)),
        lambda q, k, cos, sin: (q.transpose(1, 2).contiguous().transpose(1, 2), k, cos, sin),
    ],
)
def test_a_remembered_call_does_not_serve_another_kind(change: Callable[..., Any]) -> None:
    given = tensors()
    other = change(*given)
    want = plain.apply(*other, interleaved=False)
    for tensors_ in (given, other, given, other):
        got = xattn.apply_rotary(*tensors_)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_what_is_remembered_has_a_bound() -> None:
    for seqlen in range(1, 1200):
        xattn.apply_rotary(*tensors(batch=1, seqlen=seqlen, nheads=1, nheads_k=1, headdim=2, rotary_dim=2))
    assert 0 < len(memory._recent) <= 1024


def test_auto_costs_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors()
    answer = plain.apply(*given, interleaved=False)
    monkeypatch.setattr(plain, "apply", lambda *_, **__: answer)

    def best(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(500):
                function()
            times.append(time.perf_counter() - start)
        return min(times) / 500

    cost = best(lambda: xattn.apply_rotary(*given)) - best(lambda: plain.apply(*given, interleaved=False))
    assert cost < 3e-6


# ---------------------------------------------------------------------------------------------------------------------
# Who rotates
# ---------------------------------------------------------------------------------------------------------------------

ROTATES = """
    def rotary_reasons(self, request):
        return [] if request.rotary_dim == 16 else [xattn.Reason("rotary_dim", request.rotary_dim, "16", "Use 16.")]

    def rotary_plan(self, request):
        return lambda q, k, cos, sin: (torch.full_like(q, 7.0), k)
"""


def test_auto_takes_the_first_by_priority_that_has_the_op(load: Load, strangers: Any) -> None:
    load(
        [
            *stranger(strangers, "unable", backend_source("unable", 1.0, priority=3000)),
            *stranger(strangers, "able", backend_source("able", 1.0, priority=500, body=ROTATES)),
            *stranger(strangers, "later", backend_source("later", 1.0, priority=400, body=ROTATES.replace("7", "8"))),
        ]
    )
    given = tensors()
    assert bool((xattn.apply_rotary(*given)[0] == 7).all())
    narrow = tensors(rotary_dim=8)
    assert torch.equal(xattn.apply_rotary(*narrow)[0], plain.apply(*narrow, interleaved=False)[0])
    assert bool((xattn.apply_rotary(*given, backend=["reference", "able"])[0] != 7).all())
    assert bool((xattn.apply_rotary(*given, backend="able")[0] == 7).all())
    with pytest.raises(xattn.UnsupportedError, match=r"rotary_dim=8 \(supported: 16\)\. Use 16") as refusal:
        xattn.apply_rotary(*narrow, backend="able")
    assert isinstance(refusal.value.request, xattn.RotaryRequest)
    assert refusal.value.request.rotary_dim == 8
    with pytest.raises(xattn.UnsupportedError, match=r"op=apply_rotary \(supported: attention\)"):
        xattn.apply_rotary(*given, backend="unable")


def test_a_disabled_backend_is_passed_over_and_its_name_is_refused(load: Load, strangers: Any) -> None:
    load(stranger(strangers, "able", backend_source("able", 1.0, body=ROTATES)), disabled=["able", "reference"])
    given = tensors()
    assert torch.equal(xattn.apply_rotary(*given)[0], plain.apply(*given, interleaved=False)[0])
    for name in ("able", "reference"):
        with pytest.raises(xattn.UnsupportedError, match=f"disabled=by XATTN_DISABLE={name}"):
            xattn.apply_rotary(*given, backend=name)


@pytest.mark.parametrize("says", ['raise RuntimeError("oh")', "return 3"])
def test_a_broken_backend_is_passed_over_aloud(
    load: Load, strangers: Any, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    body = ROTATES.replace("return [] if", f"{says}\n        return [] if")
    load(stranger(strangers, "broken", backend_source("broken", 1.0, body=body)))
    monkeypatch.setattr(selection, "_warned", set())
    given = tensors()
    with pytest.warns(xattn.BrokenBackendWarning, match="rotates without the backend 'broken'") as warned:
        got = xattn.apply_rotary(*given)
    assert warned[0].filename == __file__
    assert torch.equal(got[0], plain.apply(*given, interleaved=False)[0])
    with pytest.raises(xattn.UnsupportedError, match="broken"):
        xattn.apply_rotary(*given, backend="broken")


def test_an_error_of_a_kernel_names_the_call(load: Load, strangers: Any) -> None:
    body = ROTATES.replace("(torch.full_like(q, 7.0), k)", "1 / 0")
    load(stranger(strangers, "able", backend_source("able", 1.0, body=body)))
    for _ in range(2):  # the first call, and a remembered one
        with pytest.raises(ZeroDivisionError) as error:
            xattn.apply_rotary(*tensors())
        (note,) = error.value.__notes__
        assert "'able' for apply_rotary: q=(2, 5, 4, 16), k=(2, 5, 2, 16), cos=(5, 8) float32, float32, cpu" in note


def test_the_choice_of_who_computes_attention_is_not_asked(load: Load, strangers: Any) -> None:
    load(stranger(strangers, "unable", backend_source("unable", 1.0)))
    given = tensors()
    with xattn.use_backend("unable"):
        got = xattn.apply_rotary(*given)
    assert torch.equal(got[0], plain.apply(*given, interleaved=False)[0])


def test_neither_is_the_environment(tmp_path: Any) -> None:
    code = """
        import torch, xattn
        x = torch.ones(1, 2, 1, 4)
        one = torch.ones(2, 2)
        print(xattn.apply_rotary(x, x, one, 0 * one)[0].sum().item())
    """
    assert run_python(code, tmp_path, XATTN_BACKEND="sdpa").strip() == "8.0"


def test_an_unknown_name() -> None:
    with pytest.raises(xattn.UnknownBackendError, match='Did you mean "reference"'):
        xattn.apply_rotary(*tensors(), backend="referense")
    with pytest.raises(xattn.InvalidArgumentError, match="backend: got"):
        xattn.apply_rotary(*tensors(), backend=3)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# What contradicts the contract
# ---------------------------------------------------------------------------------------------------------------------

Q, K, COS, SIN = tensors()
NARROW = [x[:, :4].contiguous() for x in (COS, SIN)]


def doubled(x: Tensor) -> Tensor:
    return torch.cat((x, x), -1)


def bnsh(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


@pytest.mark.parametrize(
    ("given", "argument", "said"),
    [
        (([1.0], K, COS, SIN), "q", "got list, want a torch.Tensor"),
        ((Q, [1.0], COS, SIN), "k", "got list, want a torch.Tensor"),
        ((Q, K, None, SIN), "cos", "got NoneType, want a torch.Tensor"),
        ((Q[0], K, COS, SIN), "q", r"pass q\[None\]"),
        ((Q.to_sparse(), K, COS, SIN), "q", "sparse"),
        ((Q.int(), K, COS, SIN), "q", "got int32, want float64, float32, float16, bfloat16"),
        ((Q.transpose(2, 3), K, COS, SIN), "q", "Call q.contiguous"),
        ((Q[:, :, :0], K, COS, SIN), "q", "at least one head"),
        ((Q, K.half(), COS, SIN), "k", "dtype float16, want float32, the dtype of q"),
        ((Q, K.to("meta"), COS, SIN), "k", "device meta, want cpu"),
        ((Q, K[:1], COS, SIN), "k", "batch 1, want 2, the batch of q"),
        ((Q, K[:, :3], COS, SIN), "k", r"apply_rotary\(k, None, cos_k, sin_k\)"),
        ((Q, K[..., :8].contiguous(), COS, SIN), "k", "headdim 8, want 16"),
        ((bnsh(Q), bnsh(K), COS, SIN), "k", "look like .batch, nheads, seqlen, headdim.*transpose"),
        ((bnsh(Q), bnsh(Q), COS, SIN), "cos", "looks like .batch, nheads, seqlen, headdim.*transpose"),
        ((bnsh(Q), None, COS, SIN), "cos", "looks like .batch, nheads, seqlen, headdim.*transpose"),
        ((Q, K, doubled(COS), doubled(SIN)), "cos", r"Hugging Face.*cos\[\.\.\., : headdim // 2\]"),
        ((Q, K, doubled(COS)[None], doubled(SIN)[None]), "cos", r"Hugging Face.*cos\[\.\.\., : headdim // 2\]"),
        ((Q, K, doubled(COS).expand(2, -1, -1), doubled(SIN).expand(2, -1, -1)), "cos", "Hugging Face"),
        ((Q, K, doubled(COS)[:, :12].contiguous(), SIN), "cos", r"each value twice is halved"),
        ((Q, K, COS[None], SIN[None]), "cos", r"pass cos\[0\]"),
        ((Q, K, COS[:, None], SIN[:, None]), "cos", "shape .5, 1, 8."),
        ((Q, K, COS[None, :, None], SIN[None, :, None]), "cos", "without the dimension of heads"),
        ((Q, K, torch.zeros(9, 8), torch.zeros(9, 8)), "cos", r"cos\[positions\]"),
        ((Q, K, COS[:, :0], SIN[:, :0]), "cos", "rotary_dim from 2 to 16"),
        ((Q, K, COS[:, 0], SIN[:, 0]), "cos", "shape .5,."),
        ((Q, K, COS, NARROW[1]), "sin", "the shape of cos"),
        ((Q, K, COS.half(), SIN.half()), "cos", "got float16, want float32$"),
        ((Q.half(), K.half(), COS.bfloat16(), SIN), "cos", "got bfloat16, want float32 or float16, the dtype of q"),
        ((Q.half(), K.half(), COS, SIN.half()), "sin", "float32, the dtype of cos"),
        ((Q, K, torch.complex(COS, SIN), SIN), "cos", r"cos=cos\.real"),
        ((Q, K, COS.to("meta"), SIN), "cos", "device meta, want cpu, the device of q"),
        ((Q, K, COS.clone().requires_grad_(), SIN), "cos", "Detach it"),
        ((Q, K, COS, SIN.clone().requires_grad_()), "sin", "Detach it"),
        ((Q, K, COS.t().contiguous().t(), SIN), "cos", "Call cos.contiguous"),
    ],
)
def test_an_illegal_call_names_the_argument_and_the_cause(given: Any, argument: str, said: str) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=said) as error:
        xattn.apply_rotary(*given)
    assert error.value.argument == argument
    assert not memory._recent


@pytest.mark.parametrize("value", [2, None, "neox", torch.zeros(2)])
def test_interleaved_is_true_or_false(value: Any) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match=r"interleaved: got .*, want True or False"):
        xattn.apply_rotary(Q, K, COS, SIN, interleaved=value)


def test_a_table_that_wants_a_gradient_is_fine_where_none_is_made() -> None:
    with torch.no_grad():
        xattn.apply_rotary(Q, K, COS.clone().requires_grad_(), SIN)


def test_the_contract_names_every_argument() -> None:
    from support import ROOT

    page = (ROOT / "docs" / "contract.md").read_text().partition("## Rotary")[2].partition("\n## ")[0]
    for name in ("q", "k", "cos", "sin", *xattn.apply_rotary.__kwdefaults__):
        assert f"`{name}`" in page or f"{name}=" in page, name
