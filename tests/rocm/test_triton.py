"""What `aiter-triton` declines, and what it passes to aiter. Its answers are `make test-aiter`'s matter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from xattn_rocm import installation, vendor, xattn_backends
from xattn_rocm.installation import Installation

import xattn
from xattn import AttentionRequest
from xattn.plugin.devices import emulated
from xattn.testing import fresh

BACKENDS = {backend.name: backend for backend in xattn_backends()}
WHEEL = Installation(Path("/aiter"), "0.1.7.post2.dev18", "flat")
NEWEST = Installation(Path("/aiter"), "0.1.20.post1", "attention")
BEFORE_WINDOWS = Installation(Path("/aiter"), "0.1.11.post1", "attention")
BEFORE_SINKS_GRADIENT = Installation(Path("/aiter"), "0.1.13", "attention")


class Given:
    """Stands for both of aiter's functions: keeps what it is given, and answers with numbers of the right shape."""

    _MHA_IMPL = "default"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        self.calls.append({"q": q, "k": k, "v": v, **options})
        out = torch.ones(*q.shape[:3], v.shape[3], dtype=q.dtype)
        return (out, torch.ones(q.shape[0], q.shape[2], q.shape[1])) if options["return_lse"] else out

    def unified_attention(self, **options: Any) -> None:
        self.calls.append(options)
        options["out"].fill_(1.0)

    @property
    def last(self) -> dict[str, Any]:
        return self.calls[-1]


@pytest.fixture
def aiter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    given = Given()
    monkeypatch.setitem(emulated, "cpu", ("rocm", "gfx942"))
    monkeypatch.setattr(installation, "overridden", NEWEST)
    monkeypatch.setattr(vendor, "module", lambda name: given)
    with fresh():
        yield given


def qkv(
    seqlen_q: int = 64, seqlen_k: int | None = None, nheads: int = 4, nheads_k: int = 2, headdim: int = 64,
    headdim_v: int | None = None, dtype: torch.dtype = torch.float16, grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
    shapes = ((seqlen_q, nheads, headdim), (seqlen_k, nheads_k, headdim), (seqlen_k, nheads_k, headdim_v or headdim))
    q, k, v = (torch.randn(2, *shape, dtype=dtype, requires_grad=grad) for shape in shapes)
    return q, k, v


def call(*tensors: Tensor, **options: Any) -> Any:
    return xattn.attention(*tensors, backend="aiter-triton", **options)


def reasons(installed: Installation, arch: str, sizes: dict[str, Any], options: dict[str, Any]) -> set[str]:
    """The codes of what stops the call on a release and an arch."""
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setitem(emulated, "cpu", ("rocm", arch))
        patched.setattr(installation, "overridden", installed)
        found = xattn.explain(*qkv(**sizes), backend="aiter-triton", **options)
    (candidate,) = [each for each in found.candidates if each.name == "aiter-triton"]
    assert all(reason.want and reason.got != reason.want for reason in candidate.reasons)
    return {reason.code for reason in candidate.reasons}


SINKS = torch.zeros(4)
SLOPES = torch.ones(4)
LENGTHS = torch.tensor([3, 64])
LSE = {"return_lse": True}
SINGLE = {"dtype": torch.float32}


@pytest.mark.parametrize(
    ("rule", "installed", "arch", "sizes", "options", "codes"),
    [
        ("triton-mha-no-window", WHEEL, "gfx942", {}, {"window": (16, None)}, {"window"}),
        ("triton-mha-no-window", WHEEL, "gfx942", {}, {"window": (16, 0), **LSE}, {"window"}),
        ("triton-mha-no-window", BEFORE_WINDOWS, "gfx942", {}, {"window": (16, 0), **LSE}, {"window"}),
        ("triton-mha-no-window", NEWEST, "gfx942", {}, {"window": (16, 0), **LSE}, set()),
        ("triton-mha-no-sinks", WHEEL, "gfx942", {}, {"sinks": SINKS, **LSE}, {"sinks"}),
        ("triton-mha-no-sinks", NEWEST, "gfx942", {}, {"sinks": SINKS, **LSE}, set()),
        ("triton-left-0-is-full", NEWEST, "gfx942", {}, {"window": (0, None)}, {"window"}),
        ("triton-left-0-is-full", NEWEST, "gfx942", {}, {"window": (0, 0), **LSE}, {"window"}),
        ("triton-left-0-is-full", NEWEST, "gfx942", {}, {"window": (0, 0)}, set()),
        ("triton-no-right-window", NEWEST, "gfx942", {}, {"window": (None, 3)}, {"window"}),
        ("triton-no-right-window", NEWEST, "gfx942", {}, {"window": (None, 3), "causal": True}, set()),
        ("triton-no-bias", NEWEST, "gfx942", {}, {"bias": torch.zeros(64, 64, dtype=torch.float16)}, {"bias"}),
        ("triton-pads-v-by-q", NEWEST, "gfx942", {"headdim": 96, "headdim_v": 72}, {}, {"headdim_v"}),
        ("triton-pads-v-by-q", NEWEST, "gfx942", {"headdim": 192, "headdim_v": 128}, {}, set()),
        ("triton-pads-v-by-q", NEWEST, "gfx942", {"headdim": 64, "headdim_v": 128}, {}, {"headdim_v"}),
        ("triton-padded-gradients", NEWEST, "gfx942", {"headdim": 20, "grad": True}, {}, set()),
        ("triton-backward-odd-headdim", WHEEL, "gfx942", {"headdim": 80, "grad": True}, {}, {"headdim_v"}),
        ("triton-backward-odd-headdim", WHEEL, "gfx942", {"headdim": 8, "grad": True}, {}, {"headdim_v"}),
        ("triton-backward-odd-headdim", WHEEL, "gfx942", {"headdim": 80}, {}, set()),
        ("triton-backward-odd-headdim", NEWEST, "gfx942", {"headdim": 80, "grad": True}, {}, set()),
        ("triton-no-config", WHEEL, "gfx90a", {}, LSE, {"arch"}),
        ("triton-no-config", NEWEST, "gfx1201", {}, LSE, {"arch"}),
        ("triton-no-config-gfx1250", NEWEST, "gfx1250", {}, LSE, set()),
        ("triton-no-config-gfx1250", BEFORE_WINDOWS, "gfx1250", {}, LSE, {"arch"}),
        ("triton-no-config-gfx1151", NEWEST, "gfx1151", {}, LSE, set()),
        ("triton-no-config-gfx1151", BEFORE_SINKS_GRADIENT, "gfx1151", {}, LSE, {"arch"}),
        ("unknown-arch", NEWEST, "gfx9999", {"seqlen_q": 1}, {}, {"arch"}),
        ("unified-always-causal", NEWEST, "gfx942", {}, {"softcap": 5.0}, {"softcap"}),
        ("unified-always-causal", NEWEST, "gfx942", {}, {"softcap": 5.0, "causal": True}, set()),
        ("unified-always-causal", NEWEST, "gfx942", {"seqlen_q": 1, "seqlen_k": 64}, {"softcap": 5.0}, set()),
        ("unified-no-fp32", NEWEST, "gfx942", SINGLE, {"softcap": 5.0, "causal": True}, {"softcap"}),
        ("triton-float32-lds", NEWEST, "gfx942", {**SINGLE, "headdim": 192, "headdim_v": 128}, {}, {"headdim_v"}),
        ("triton-float32-lds", NEWEST, "gfx950", {**SINGLE, "headdim": 192, "headdim_v": 128}, {}, set()),
        ("triton-float32-lds", NEWEST, "gfx942", {**SINGLE, "headdim": 192, "grad": True}, {}, {"headdim"}),
        ("triton-float32-lds", NEWEST, "gfx942", {**SINGLE, "headdim": 128, "grad": True}, {}, set()),
    ],
)  # fmt: skip
def test_rules(
    rule: str, installed: Installation, arch: str, sizes: dict[str, Any], options: dict[str, Any], codes: set[str]
) -> None:
    assert reasons(installed, arch, sizes, options) == codes


def sinks_with_gradient() -> Tensor:
    return torch.zeros(4, requires_grad=True)


@pytest.mark.parametrize(
    ("installed", "codes"),
    [(WHEEL, {"sinks", "grad_sinks"}), (BEFORE_SINKS_GRADIENT, {"grad_sinks"}), (NEWEST, set())],
)
def test_the_gradient_of_sinks_is_noise_before_0_1_14(installed: Installation, codes: set[str]) -> None:
    """triton-sinks-gradient-noise"""
    assert reasons(installed, "gfx942", {"grad": True}, {"sinks": sinks_with_gradient()}) == codes


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ({"softcap": 5.0, "causal": True, **LSE}, {"softcap"}),
        ({"seqlens_k": LENGTHS, "causal": True}, set()),
        ({"seqlens_k": LENGTHS, "causal": True, "window": (16, 0)}, {"seqlens_k"}),
        ({"seqlens_k": LENGTHS}, {"seqlens_k"}),
        ({"softcap": 5.0, "causal": True, "alibi_slopes": SLOPES}, set()),
        ({"softcap": 5.0, "causal": True, "alibi_slopes": SLOPES.expand(2, 4)}, {"softcap"}),
        ({"softcap": 5.0, "causal": True, "alibi_slopes": SLOPES, "sinks": SINKS}, {"softcap"}),
        ({"dropout_p": 0.1}, {"dropout_p"}),
        ({"mask": torch.ones(64, 64, dtype=torch.bool)}, {"mask"}),
    ],
    ids=str,
)
def test_what_neither_kernel_has(options: dict[str, Any], codes: set[str]) -> None:
    assert reasons(NEWEST, "gfx942", {}, options) >= codes
    assert bool(reasons(NEWEST, "gfx942", {}, options)) is bool(codes)


@pytest.mark.parametrize(
    ("options", "sizes", "wanted"),
    [
        ({}, {}, {"causal": False}),
        ({"causal": True}, {}, {"causal": True}),
        # The 0 that causal implies to the right is what aiter refuses: it is left to causal.
        ({"window": (16, 0)}, {}, {"causal": True, "window_size": (16, -1)}),
        ({"window": (16, None)}, {}, {"causal": False, "window_size": (16, -1)}),
        ({"window": (63, 63)}, {}, {"causal": False}),
        ({"scale": 0.0}, {}, {"softmax_scale": 0.0}),
        ({}, {"headdim": 16}, {"softmax_scale": 0.25}),
    ],
    ids=str,
)
def test_what_mha_is_given(
    aiter: Given, options: dict[str, Any], sizes: dict[str, int], wanted: dict[str, Any]
) -> None:
    call(*qkv(**sizes), return_lse=True, **options)
    given = {name: value for name, value in aiter.last.items() if name in ("causal", "window_size", "softmax_scale")}
    assert given == {"causal": False, "softmax_scale": 0.125, **wanted}


@pytest.mark.parametrize(
    ("arch", "own"),
    [("gfx942", "float8_e4m3fnuz"), ("gfx950", "float8_e4m3fn"), ("gfx1201", "float8_e4m3fn"), ("gfx90a", "none")],
)
@pytest.mark.parametrize("backend", ["aiter", "aiter-triton"])
def test_fp8_is_declined_and_named_by_arch(monkeypatch: pytest.MonkeyPatch, backend: str, arch: str, own: str) -> None:
    monkeypatch.setattr(installation, "overridden", NEWEST)
    asked = AttentionRequest(
        device="rocm", arch=arch, dtype=torch.float8_e4m3fn, batch=1, seqlen_q=64, seqlen_k=64, nheads=4, nheads_k=4,
        headdim=64, headdim_v=64,
    )  # fmt: skip
    for kernel in BACKENDS[backend].kernels:
        if kernel.op == "attention":
            found = {reason.code: reason for reason in kernel.reasons(asked)}
            assert {"dtype", "fp8"} <= set(found)
            assert found["fp8"].hint.endswith(f"aiter's fp8 on {arch}: {own}.")


def test_dead_rows_have_no_lse_and_no_out(aiter: Given) -> None:
    """triton-dead-row-lse"""
    out, lse = call(*qkv(64, 40), causal=True, return_lse=True)
    assert (lse[:, :, :24] == -math.inf).all()
    assert (lse[:, :, 24:] == 1).all()
    assert (out[:, :24] == 0).all()
    assert (out[:, 24:] == 1).all()


def test_the_lse_of_a_dead_row_is_the_sink(aiter: Given) -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    _, lse = call(*qkv(64, 40), causal=True, return_lse=True, sinks=sinks)
    assert torch.equal(lse[:, :, 0], sinks.expand(2, 4))


def test_a_switched_implementation_is_an_error(aiter: Given) -> None:
    """triton-global-switches"""
    aiter._MHA_IMPL = "dao_ai"  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="mha_set_impl"):
        call(*qkv(), return_lse=True)


class Copies(TorchDispatchMode):
    """Notes every operator that writes as much as a tensor of the call holds."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.made = least, []  # type: ignore[var-annotated]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        large = isinstance(returned, Tensor) and returned.numel() >= self.least
        if large and not function.is_view and "empty" not in str(function):
            self.made.append(str(function))
        return returned


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "sequence first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "cut out": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "packed": lambda x: torch.stack([x, x, x], 2)[:, :, 1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("options", [{"return_lse": True}, {"window": (16, 0), "return_lse": True}], ids=str)
def test_mha_gets_the_tensors_as_they_lie(aiter: Given, layout: Any, options: dict[str, Any]) -> None:
    q, k, v = (layout(x) for x in qkv(64, 128))
    with Copies(q.numel()) as copies:
        call(q, k, v, **options)
    assert set(copies.made) <= {"aten.ones.default"}  # the stand-in's own
    first = 128 - 64 - 16 if "window" in options else 0
    for name, x in (("q", q), ("k", k[:, first:]), ("v", v[:, first:])):
        assert aiter.last[name].data_ptr() == x.data_ptr()
        assert aiter.last[name].stride() == x.stride()
        assert aiter.last[name].shape == x.shape


@pytest.mark.parametrize("seqlen_k", [1, 9, 16, 64, 100, 300])
@pytest.mark.parametrize("seqlen_q", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("installed", [WHEEL, NEWEST], ids=["flat", "attention"])
def test_pages_lead_to_every_key_without_a_copy(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, installed: Installation, layout: Any, seqlen_q: int, seqlen_k: int
) -> None:
    """Reads k as the kernel does: a page's place from the table, in units of the distance of two pages."""
    monkeypatch.setattr(installation, "overridden", installed)
    q, k, v = (layout(x) for x in qkv(seqlen_q, seqlen_k))
    q = q.contiguous()
    with Copies(1) as copies:
        out = call(q, k, v, causal=True, softcap=5.0)
    given = aiter.last
    assert not {"aten.clone.default", "aten.copy_.default", "aten._to_copy.default"} & set(copies.made)
    assert out.is_contiguous()
    pages, table = given["k"], given["block_table"]
    _, page, nheads_k, headdim = pages.shape
    storage = torch.as_strided(k, (k.untyped_storage().nbytes() // k.element_size(),), (1,), 0)
    alive = range(max(0, seqlen_q - seqlen_k), seqlen_q)
    assert given["seqused_k"].tolist() == [seqlen_k] * 2
    assert given["cu_seqlens_q"].tolist() == [0, seqlen_q, 2 * seqlen_q]
    for row in range(2):
        for key in range(seqlen_k):
            place = pages.storage_offset() + int(table[row, key // page]) * pages.stride(0)
            place += (key % page) * pages.stride(1) + pages.stride(2)
            assert torch.equal(storage[place : place + headdim], k[row, key, 1])
    assert nheads_k == 2
    assert (out[:, list(alive)] == 1).all()


def test_the_kernel_never_loads_a_page_past_the_last_key(aiter: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile as large as a page is loaded whole. A tile is 64 keys, 32 for wide heads, 16 elsewhere, and a page, of 64
    keys at most, where it decodes."""
    for installed in (WHEEL, BEFORE_WINDOWS, NEWEST):
        monkeypatch.setattr(installation, "overridden", installed)
        for seqlen_q in (1, 2, 300):
            for seqlen_k in (*range(1, 140), 256, 1000, 1024):
                with fresh():
                    call(*qkv(seqlen_q, seqlen_k, headdim=16), causal=True, softcap=5.0)
                given = aiter.last
                page = given["k"].shape[1]
                decodes, splits = given["max_seqlen_q"] == 1, given["window_size"][0] < 0
                # unified-tile-is-page
                tile = page if installed is not NEWEST else min(64, 2 ** math.ceil(math.log2(page)))
                tiles = {16, 32, 64} if not decodes else {tile}
                tiles |= {tile} if splits else set()
                assert not splits or seqlen_q == 1  # unified-hidden-tile-is-0
                assert seqlen_k % page == 0 or page not in tiles


def test_lengths_of_rows_are_passed_on_and_dead_queries_come_out_as_0(aiter: Given) -> None:
    lengths = torch.tensor([3, 64])
    out = call(*qkv(8, 64), causal=True, seqlens_k=lengths)
    assert aiter.last["seqused_k"].tolist() == [3, 64]
    assert (out[0, :5] == 0).all()
    assert (out[0, 5:] == 1).all()
    assert (out[1] == 1).all()


def test_a_graph_reads_tables_of_its_own(aiter: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's may be gone when it is replayed, and those made while it is recorded are written by the replay."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tensors, seen = qkv(8, 64), []
    for recording in (False, True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", [bool, lambda: True][recording])
        call(*tensors, causal=True, softcap=5.0)
        seen.append(aiter.last["block_table"])
    assert seen[0] is seen[2]
    assert seen[1] is not seen[0]


def test_what_the_kernel_reads_without_strides_is_contiguous(aiter: Given) -> None:
    """unified-reads-without-strides"""
    tensors = qkv(8, 64)
    sinks, lengths = torch.arange(8.0)[::2], torch.tensor([[20, 7], [64, 7]], dtype=torch.int32)[:, 0]
    call(*tensors, causal=True, softcap=5.0, sinks=sinks, seqlens_k=lengths)
    assert aiter.last["sinks"].is_contiguous()
    assert aiter.last["seqused_k"].is_contiguous()
    assert torch.equal(aiter.last["sinks"], sinks)
    assert torch.equal(aiter.last["seqused_k"], lengths)
    slopes = torch.arange(1.0, 9.0)[::2]
    call(*tensors, causal=True, softcap=5.0, alibi_slopes=slopes)
    assert aiter.last["alibi_slopes"].is_contiguous()
    assert torch.equal(aiter.last["alibi_slopes"], slopes)


@pytest.mark.parametrize("seqlen_k", [64, 576])
@pytest.mark.parametrize("installed", [WHEEL, BEFORE_WINDOWS])
def test_heads_that_are_no_power_of_2_are_not_split(
    aiter: Given, monkeypatch: pytest.MonkeyPatch, installed: Installation, seqlen_k: int
) -> None:
    """unified-split-of-odd-heads"""
    monkeypatch.setattr(installation, "overridden", installed)
    call(*qkv(1, seqlen_k, headdim=80))
    assert aiter.last["window_size"][0] >= 0
    call(*qkv(1, seqlen_k, headdim=64))
    assert (aiter.last["window_size"][0] < 0) is (seqlen_k % 16 == 0)


def test_every_call_runs_on_the_device_of_its_tensors(aiter: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """triton-launches-on-the-current-device"""
    entered = []

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Current)
    call(*qkv(8, 64), causal=True, softcap=5.0)
    call(*qkv(8, 64), return_lse=True)
    assert entered == [torch.device("cpu")] * 2


def test_the_gradient_of_sinks_is_not_deterministic() -> None:
    """triton-sinks-gradient-atomics"""
    sinks = sinks_with_gradient()
    assert reasons(NEWEST, "gfx942", {"grad": True}, {"sinks": sinks, "deterministic": True}) == {"deterministic"}
    assert reasons(NEWEST, "gfx942", {"grad": True}, {"sinks": SINKS, "deterministic": True}) == set()


def test_keys_and_values_in_layouts_of_their_own_are_copied_once(aiter: Given) -> None:
    q, k, v = qkv(8, 64)
    call(q, LAYOUTS["heads first"](k), LAYOUTS["sequence first"](v), causal=True, softcap=5.0)
    assert aiter.last["k"].stride(1) == k.stride(1)


def test_auto_takes_aiter_before_sdpa(aiter: Given) -> None:
    ordered = [candidate.name for candidate in xattn.explain(*qkv()).candidates]
    assert ordered.index("aiter") < ordered.index("aiter-triton") < ordered.index("sdpa")
