"""What the backends decline, and with which reason: nothing is served that the kernels would compute otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xattn
from xattn import UnsupportedError

BACKENDS = ["nki", "nki-legacy"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("code", "changes", "options"),
    [
        ("headdim", {"headdim": 192}, {"causal": True}),
        ("window", {}, {"window": (16, 5)}),
        ("window", {}, {"window": (None, 5)}),
        ("window", {}, {"window": (16, None)}),
        ("dropout_p", {}, {"causal": True, "dropout_p": 0.1}),
        ("mask", {}, {"mask": torch.ones(512, 512, dtype=torch.bool)}),
        ("bias", {}, {"bias": torch.zeros(512, 512)}),
        ("softcap", {}, {"softcap": 2.0}),
        ("alibi_slopes", {}, {"alibi_slopes": torch.ones(4)}),
        ("seqlens_k", {}, {"seqlens_k": torch.tensor([3, 4])}),
        ("deterministic", {}, {"deterministic": True}),
        ("dtype", {"dtype": torch.float16}, {}),
        ("dtype", {"dtype": torch.float64}, {}),
        ("empty", {"batch": 0}, {}),
    ],
)
def test_what_neither_has(
    aws: Any, qkv: Any, reasons: Any, backend: str, code: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    made, tensors = aws(), qkv(512, **changes)
    found = reasons(backend, *tensors, **options)
    assert code in found
    with pytest.raises(UnsupportedError):
        xattn.attention(*tensors, backend=backend, **options)
    assert not made.launches


def test_float32_is_not_multiplied_in_bfloat16(aws: Any, qkv: Any, reasons: Any) -> None:
    """cte-multiplies-in-bfloat16"""
    aws()
    assert reasons("nki", *qkv(dtype=torch.float32))["dtype"].want == "bfloat16"


def test_512_heads_times_batch(aws: Any, qkv: Any, reasons: Any) -> None:
    """cte-512-heads"""
    aws()
    assert not reasons("nki", *qkv(16, batch=128, nheads=4))
    found = reasons("nki", *qkv(16, batch=150, nheads=4))
    assert (found["batch"].got, found["batch"].want) == (600, "batch * nheads up to 512")


def test_131072_tokens(aws: Any, reasons: Any) -> None:
    aws()
    q, k = (torch.empty(1, seqlen, 1, 1, dtype=torch.bfloat16) for seqlen in (1, 131073))
    assert set(reasons("nki", q, k, k)) == {"seqlen_k"}
    assert set(reasons("nki", k, q, q)) == {"seqlen_q"}
    assert not reasons("nki", k[:, :-1], q, q)
    assert not reasons("nki", q, k[:, :-1], k[:, :-1])


def test_large_calls_are_served(aws: Any, reasons: Any) -> None:
    """cte-warns-of-small-calls: what AWS did not test is no limit, as the kernel runs it."""
    aws()
    x = torch.empty(1, 1, 1, 1, dtype=torch.bfloat16).expand(8, 65536, 8, 1)
    assert not reasons("nki", x, x, x, causal=True)


def test_headdim_of_v(aws: Any, qkv: Any, reasons: Any) -> None:
    aws()
    q, k, _ = qkv(512)
    for backend in BACKENDS:
        assert "headdim_v" in reasons(backend, q, k, k[..., :32])


def test_odd_lengths_are_served_or_said(aws: Any, qkv: Any, reasons: Any) -> None:
    """legacy-keys-of-whole-tiles: keys that are added must be hidden."""
    aws()
    assert not reasons("nki", *qkv(333, 77))
    assert reasons("nki-legacy", *qkv(512, 333))["seqlen_k"].want == "a multiple of 512"
    assert not reasons("nki-legacy", *qkv(333), causal=True)
    # The last queries see all keys, and would see those added.
    assert "seqlen_k" in reasons("nki-legacy", *qkv(400, 333), causal=True, align="top_left")


def test_legacy_has_no_diagonal_further_on(aws: Any, qkv: Any, reasons: Any) -> None:
    """legacy-causal-is-top-left"""
    aws()
    found = reasons("nki-legacy", *qkv(512, 1024), causal=True)
    assert set(found) == {"align"}
    assert "nki" in found["align"].hint
    assert not reasons("nki-legacy", *qkv(512, 1024), causal=True, align="top_left")


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scales_that_kernels_replace(aws: Any, qkv: Any, reasons: Any, scale: float) -> None:
    """legacy-scale-0-is-replaced, bwd-scale-default-differs"""
    aws()
    tensors = qkv(512)
    assert set(reasons("nki-legacy", *tensors, scale=scale)) == ({"scale"} if scale == 0 else set())
    assert not reasons("nki", *tensors, scale=scale)
    tensors[0].requires_grad_()
    assert set(reasons("nki", *tensors, scale=scale)) == {"scale"}


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(128, 384), (128, 640), (128, 100)])
def test_lengths_of_the_backward(aws: Any, qkv: Any, reasons: Any, seqlen_q: int, seqlen_k: int) -> None:
    """bwd-lengths"""
    aws()
    q, k, v = qkv(seqlen_q, seqlen_k)
    assert not reasons("nki", q, k, v)
    assert set(reasons("nki", q.requires_grad_(), k, v)) == {"seqlen_k"}


@pytest.mark.parametrize(("options", "served"), [({}, False), ({"align": "top_left"}, True)])
def test_causal_gradients_are_square(aws: Any, qkv: Any, reasons: Any, options: dict[str, Any], served: bool) -> None:
    """bwd-causal-is-square"""
    aws()
    q, k, v = qkv(128, 256)
    assert ("seqlen_k" in reasons("nki", q.requires_grad_(), k, v, causal=True, **options)) is not served
    q, k, v = qkv(1024, 512)
    for backend in BACKENDS:
        assert "seqlen_k" in reasons(backend, q.requires_grad_(), k, v, causal=True, align="top_left")


def test_lse_has_no_gradient(aws: Any, qkv: Any, reasons: Any) -> None:
    """bwd-has-no-lse-gradient"""
    aws()
    q, k, v = qkv(512)
    for backend in BACKENDS:
        assert set(reasons(backend, q.requires_grad_(), k, v, return_lse=True)) == {"grad_lse"}


def test_nxdis_kernel_alone(aws: Any, qkv: Any, reasons: Any) -> None:
    """nxdi-casual-mask, nxdi-has-no-lse"""
    aws(legacy_attention=False)
    q, k, v = qkv(512)
    assert set(reasons("nki-legacy", q, k, v)) == {"causal"}
    assert not reasons("nki-legacy", q, k, v, causal=True)
    assert set(reasons("nki-legacy", q, k, v, causal=True, return_lse=True)) == {"return_lse"}
    assert set(reasons("nki-legacy", q.requires_grad_(), k, v, causal=True)) == {"grad_qkv"}


def test_neuronxccs_kernel_comes_first(aws: Any, qkv: Any) -> None:
    """nxdi-hides-with-9984, legacy-bwd-hides-with-9984: its hidden scores are the lowest of float32 in the forward."""
    made = aws()
    xattn.attention(*qkv(512), causal=True, backend="nki-legacy")
    assert made.last.kernel == "flash_fwd_legacy"


@pytest.mark.parametrize(
    ("backend", "code", "changes"),
    [
        ("nki", "neuron", {"nki": None}),
        ("nki", "neuron", {"nkilib": None}),
        ("nki", "nki", {"nki": "0.2.0"}),
        ("nki", "platform", {"platform": None}),
        ("nki", "platform", {"platform": "trn1"}),
        ("nki", "platform", {"platform": "inf2"}),
        ("nki-legacy", "neuron", {"neuronx_cc": None, "nxdi": None}),
        ("nki-legacy", "nki", {"nki": "0.4.0"}),
        ("nki-legacy", "nki", {"nki": "0.7.0+g1"}),
        ("nki-legacy", "nki", {"platform": "trn1"}),
        ("nki-legacy", "nki", {"platform": "inf2"}),
        ("nki-legacy", "platform", {"platform": "trn3"}),
    ],
)
def test_what_is_installed_and_where(
    aws: Any, qkv: Any, reasons: Any, backend: str, code: str, changes: dict[str, Any]
) -> None:
    """nki-library-before-ga, nki-without-trn1, legacy-namespace-raises; `xattn info` says the same."""
    aws(**changes)
    found = reasons(backend, *qkv(512), causal=True)
    assert set(found) == {code}
    assert found[code].hint
    (entry,) = [each for each in xattn.info()["backends"] if each["name"] == backend]
    (line,) = [line for name, line in entry["info"].items() if name != "neuron"]
    assert line.startswith("cannot be used: ")
    assert str(found[code]) in line
    assert "\n" not in line


@pytest.mark.parametrize("changes", [{"platform": "trn3"}, {"nki": "unknown"}, {"nki": "0.7.0", "neuronx_cc": "2.28"}])
def test_where_the_nki_library_runs(aws: Any, qkv: Any, reasons: Any, changes: dict[str, Any]) -> None:
    aws(**changes)
    assert not reasons("nki", *qkv(), causal=True)


@pytest.mark.parametrize("platform", ["trn1", "inf2", "trn2"])
@pytest.mark.parametrize("nki", ["0.2.0", None])
def test_where_the_legacy_kernels_run(aws: Any, qkv: Any, reasons: Any, platform: str, nki: str | None) -> None:
    aws(platform=platform, nki=nki)
    assert not reasons("nki-legacy", *qkv(512), causal=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_installed_is_a_reason_of_both(qkv: Any, reasons: Any, monkeypatch: Any, backend: str) -> None:
    from xattn_neuron import installation

    from xattn import Reason
    from xattn.plugin.devices import emulated

    emulated["cpu"] = ("neuron", None)
    absent = Reason("neuron", "nothing", "AWS's Neuron SDK")
    monkeypatch.setattr(installation, "overridden", absent)
    assert reasons(backend, *qkv(512)) == {"neuron": absent}


def test_auto_takes_the_nki_library_first(aws: Any, qkv: Any) -> None:
    aws()
    assert xattn.explain(*qkv(512), causal=True).backend == "nki"
    assert xattn.explain(*qkv(512, dtype=torch.float32), causal=True).backend == "reference"
    aws(nki="0.2.0")
    assert xattn.explain(*qkv(512), causal=True).backend == "nki-legacy"
