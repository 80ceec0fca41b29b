"""The calls that aiter and flash-attention test their kernels with, through aiter's own Triton kernels, against the
suite's oracle. What a kernel does not serve it says in exactly these reasons."""

from __future__ import annotations

from pathlib import Path

from published.calls import make
from published.rows import Row
from published.tables import each_row
from xattn_conformance.profiles.load import load
from xattn_rocm.installation import usable
from xattn_rocm.rules import holds

PROFILE = load("aiter-triton", Path("aiter-interpreter"), admitted=False).profile


@each_row(2**16)
def test_aiter_triton(row: Row) -> None:
    made = make(row)
    codes = {reason.code for reason in made.explain("aiter-triton")}
    refused = [kernel(row) for kernel in KERNELS[row.op]]
    if set() in refused:
        assert codes == set()
        assert made.failures("aiter-triton", PROFILE.arithmetic_for("rocm", row.dtype)) == []
    else:
        # Of a backend with two kernels the one that is closest to serving the call gives the reasons.
        assert codes in refused


def mha(row: Row) -> set[str]:
    """`mha.flash_attn_func` and `flash_attn_varlen_func`."""
    headdim, headdim_v = row.headdims
    odd = not width(headdim_v)
    asked = {
        "bias": row.options.get("beside") == "bias",
        "dropout_p": bool(row.options.get("dropout_p")),
        "softcap": row.options.get("softcap") is not None,
        "sinks": row.options.get("beside") == "sinks" and lacks("triton-mha-no-sinks"),
        "window": mha_window(*(opened(row) if row.op == "attention" else band(row)))
        or (row.op == "varlen_attention" and row.grads and band(row)[0] is not None),
        "headdim_v": (headdim != headdim_v and (odd or not width(headdim - headdim_v)))
        or (row.grads and odd and lacks("triton-backward-odd-headdim")),
    }
    return {code for code, is_asked in asked.items() if is_asked}


def unified(row: Row) -> set[str]:
    """`unified_attention` over keys that lie in order."""
    _, right = opened(row)
    asked = {
        "causal": right != 0 and not (right is None and row.lengths[0][0] == 1),
        "grad_qkv": row.grads,
        "return_lse": not row.grads and row.options.get("return_lse", True),
        "bias": row.options.get("beside") == "bias",
        "dropout_p": bool(row.options.get("dropout_p")),
    }
    return {code for code, is_asked in asked.items() if is_asked} | both(row)


def paged(row: Row) -> set[str]:
    """`unified_attention` over pages."""
    return pages(row) | {code for code in both(row) if code != "alibi_slopes"}


def decode(row: Row) -> set[str]:
    size, numbers = row.options["block_size"], 2**13 if row.dtype == "float32" else 2**14
    asked = {
        "cu_seqlens_q": any(queries != 1 for queries, _ in row.lengths),
        "nheads": row.heads[0] == row.heads[1],
        "block_size": size & (size - 1) != 0 or size * padded(row.headdims[0]) > numbers,
        "headdim_v": row.headdims[0] != row.headdims[1],
        "softcap": row.options.get("softcap") is not None,
    }
    return {code for code, is_asked in asked.items() if is_asked} | apart(row)


def prefill(row: Row) -> set[str]:
    asked = {
        "headdim_v": row.headdims[0] != row.headdims[1],
        "softcap": row.options.get("softcap") is not None,
    }
    return {code for code, is_asked in asked.items() if is_asked} | apart(row)


def chunked(row: Row) -> set[str]:
    size = row.options["block_size"]
    asked = {
        "dtype": row.dtype != "float32",
        "stale_pages": not row.options.get("unseen_finite"),
        "out_dtype": row.options.get("out_dtype") is not None,
        "block_size": size & (size - 1) != 0 or size > 256,
    }
    return {code for code, is_asked in asked.items() if is_asked} | prefill(row)


def extend(row: Row) -> set[str]:
    headdim, headdim_v = row.headdims
    asked = {
        "headdim": headdim > 256 or (row.dtype == "float32" and headdim != 192 and min(headdim, headdim_v) > 128),
        "headdim_v": headdim_v > 256,
        "alibi_slopes": row.options.get("beside") == "alibi",
    }
    return {code for code, is_asked in asked.items() if is_asked} | apart(row)


def apart(row: Row) -> set[str]:
    """Of the kernels that take no window and no sinks."""
    asked = {
        "window": row.options.get("window") is not None,
        "sinks": row.options.get("beside") == "sinks",
        "headdim": row.headdims[0] > 256,
    }
    return {code for code, is_asked in asked.items() if is_asked} | pages(row)


def pages(row: Row) -> set[str]:
    """Of all kernels over pages."""
    _, right = band(row)
    several = max(queries for queries, _ in row.lengths) > 1
    asked = {
        "causal": several and right is None,
        "window": several and right not in (None, 0),
        "return_lse": row.options.get("return_lse", True),
    }
    return {code for code, is_asked in asked.items() if is_asked}


def both(row: Row) -> set[str]:
    """Of `unified_attention`, wherever the keys lie."""
    asked = {
        "dtype": row.dtype == "float32",
        "headdim": row.headdims[0] > 256,
        "headdim_v": row.headdims[0] != row.headdims[1],
        "alibi_slopes": row.options.get("beside") == "alibi",
    }
    return {code for code, is_asked in asked.items() if is_asked}


KERNELS = {
    "attention": (mha, unified),
    "varlen_attention": (mha,),
    "paged_attention": (paged, decode, prefill, chunked, extend),
}


def lacks(rule: str) -> bool:
    return holds(rule, usable())


def padded(size: int) -> int:
    return 1 << (size - 1).bit_length()


def width(size: int) -> bool:
    """Whether it is one that the kernels' tiles have."""
    return size >= 16 and size & (size - 1) == 0


def mha_window(left: int | None, right: int | None) -> bool:
    return right not in (None, 0) or (left is not None and (left == 0 or lacks("triton-mha-no-window")))


def band(row: Row) -> tuple[int | None, int | None]:
    left, right = row.options.get("window") or (None, None)
    return left, 0 if row.options.get("causal") else right


def opened(row: Row) -> tuple[int | None, int | None]:
    """The band without what hides no key."""
    left, right = band(row)
    queries, keys = row.lengths[0]
    return (
        None if left is not None and left >= keys - 1 else left,
        None if right is not None and right >= queries - 1 else right,
    )
