"""What to pass to aiter for a request, so that the kernel it then picks computes the contract.

One window can be written in several ways, and aiter picks its kernel by how it is written. Its ASM kernels drop sinks
and take a side of 0 for no window; beside a side above 0, even one that hides nothing, aiter picks CK. The first way to
write the window that gives a right answer is passed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from xattn import AttentionRequest, Reason
from xattn.plugin.geometry import Geometry
from xattn_rocm.aiter.attention.routing import NAMES, Passed, backward, forward
from xattn_rocm.installation import Installation
from xattn_rocm.rules import holds

_GFX9 = ("gfx942", "gfx950")


def _trimmed(request: AttentionRequest) -> Geometry:
    """Of the queries and keys that aiter gets. Keys that no query sees are cut off. Queries that see no key are cut off
    in training alone: elsewhere aiter computes them and the plan writes over them, which saves a copy of the output."""
    whole = Geometry.of(request)
    first_q = whole.first_q if request.any_grad else 0
    return whole.part(first_q, request.seqlen_q, whole.first_k, request.seqlen_k).opened()


def passed_for(request: AttentionRequest, installed: Installation) -> Passed | Reason:
    """What to pass to aiter, or the reason why no way to pass it comes out right."""
    geometry = _trimmed(request)
    seqlen_q, seqlen_k, left, right = geometry.seqlen_q, geometry.seqlen_k, geometry.left, geometry.right
    if right is not None and right >= seqlen_k > 0 and right > 0:
        # right-side-of-keys-is-open
        hint = "aiter takes a right side as long as the keys for open, whatever the number of queries."
        return Reason("window", request.window, f"a right side below seqlen_k ({seqlen_k})", hint)
    plain = Passed(
        dtype=request.dtype,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        nheads=request.nheads,
        nheads_k=request.nheads_k,
        headdim=request.headdim,
        headdim_v=request.headdim_v,
        causal=right == 0,
        alibi=request.alibi_slopes is not None,
        bias=request.bias is not None,
        sinks=request.sinks is not None,
        softcap=request.softcap is not None,
        dropout=request.dropout_p is not None,
        return_lse=request.return_lse or request.any_grad,
        deterministic=request.deterministic,
    )
    if forward(plain, request.arch, installed, os.environ) == "opus" and holds("opus-type-error", installed):
        # OPUS returns no lse, so aiter gives a call that asks for one to ASM v3.
        plain = replace(plain, return_lse=True)
    return written(plain, left, right, request.arch, installed, request.any_grad)


def written(
    plain: Passed, left: int | None, right: int | None, arch: str | None, installed: Installation, any_grad: bool
) -> Passed | Reason:
    """`plain` with a window, written so that what aiter picks for it is right, or why there is no such way."""
    wrong = ""
    for window in _written(left, right, plain.seqlen_q, plain.seqlen_k):
        candidate = replace(plain, window=window)
        said = _wrong(candidate, arch, installed, os.environ)
        if not said and any_grad:
            said = (
                _wrong_packed_training(candidate, arch, installed) if plain.packed else _wrong_backward(candidate, arch)
            )
        if not said:
            return candidate
        wrong = wrong or said
    return Reason("kernel", wrong, "CK", "Use another backend for this call: aiter offers no way to choose its kernel.")


def _wrong_packed_training(passed: Passed, arch: str | None, installed: Installation) -> str:
    """The backward kernel is CK's, which deterministic=True picks. It goes on from the lse of queries that see no key,
    of which CK's own forward kernel alone is known (dead-lse-is-cks-alone)."""
    route = forward(passed, arch, installed, os.environ)
    return "" if route == "ck" else f"{NAMES[route]}, whose lse of queries without keys is not known to be -inf"


def _written(left: int | None, right: int | None, seqlen_q: int, seqlen_k: int) -> Iterator[tuple[int, int]]:
    """Windows that mean the same to CK, the plainest first. Beside causal=True, CK takes any right side for 0."""
    plain = (-1 if left is None else left), (-1 if right is None else right)
    if right == 0 and left is None:
        plain = -1, -1
    yield plain
    if left is None and seqlen_k > 0:
        # Not seqlen_k: aiter takes a side as long as the keys for open before it picks a kernel.
        yield seqlen_k - 1, (-1 if right is None else right)
    if right == 0 and seqlen_k > 1:
        yield plain[0], 1
    if right is None and 1 <= max(seqlen_q - 1, 1) < seqlen_k:
        yield plain[0], max(seqlen_q - 1, 1)


def _wrong(passed: Passed, arch: str | None, installed: Installation, environ: Mapping[str, str]) -> str:
    """What would be wrong with the forward pass; empty where it is right."""
    route = forward(passed, arch, installed, environ)
    if route == "ck":
        return _wrong_on_ck(passed)
    if passed.sinks:
        # v3-drops-sinks, sinks-in-unclear-units
        return f"{NAMES[route]}, which drops sinks or takes them in another unit"
    if 0 in passed.window:
        # v3-zero-window, sink-asm-ignores-windows
        return f"{NAMES[route]}, which fails for a window with a side of 0, or ignores it"
    if passed.softcap:
        # flydsl-drops-softcap, varlen-v3-drops-softcap
        return f"{NAMES[route]}, which drops the softcap"
    if route == "v3" and arch not in _GFX9:
        # v3-on-any-arch
        return f"{NAMES[route]}, which is not made for {arch}"
    if route == "v3" and passed.widths == (192, 128) and passed.large:
        # v3-wraps-at-4-gib
        return f"{NAMES[route]}, which reads other keys from 4 GiB on"
    return ""


def _wrong_on_ck(passed: Passed) -> str:
    left, right = passed.sides
    if passed.bias and not passed.causal and (left, right) == (-1, -1):
        # ck-bias-without-mask: rows whose bias is -inf throughout are divided by 0.
        return "CK without a mask, which gives NaN where a bias is -inf for all keys"
    if passed.alibi and passed.causal and left == -1:
        # ck-causal-alibi-lse: columns are counted from the first key, which a softmax does not notice.
        return "CK's causal ALiBi, whose lse is shifted"
    grouped = passed.seqlen_q == 1 and passed.nheads > passed.nheads_k and not passed.varlen
    if grouped and left == -1 and right == -1 and not (passed.alibi or passed.bias or passed.dropout):
        # A group's queries become the rows of one head: ck-groups-take-other-sinks, ck-groups-need-one-headdim.
        if passed.sinks:
            return "CK's decoding by groups, which reads the sinks of the first heads"
        if passed.widths[0] != passed.widths[1]:
            return "CK's decoding by groups, which wants headdim_v == headdim"
    return ""


def _wrong_backward(passed: Passed, arch: str | None) -> str:
    if backward(passed, arch) == "ck":
        return ""
    if passed.widths[0] != passed.widths[1] and passed.widths != (192, 128):
        # v3-backward-any-headdim-v
        return "the ASM backward kernel, which is not made for this headdim_v"
    if not passed.swa and 0 in passed.window:
        # v3-backward-zero-window
        return "the ASM backward kernel, which is not made for a window with a side of 0"
    return ""
