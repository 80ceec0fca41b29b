"""What ops have whose tensors are packed sequences: a part of their requests, and checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.errors import InvalidArgumentError
from xattn.ops.shared import checks, lengths
from xattn.ops.shared.softmax import SoftmaxRequest
from xattn.plugin.devices import device_and_arch
from xattn.plugin.request import dtype_name
from xattn.plugin.symbolic import bucket, holds, is_int32


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class PackedRequest(SoftmaxRequest):
    """batch, max_seqlen_q, max_seqlen_k: rounded up to the next power of two; a plan gets the bounds with each call. No
        size that changes from step to step is a part of the request: a plan serves every number of tokens.
    shared_lengths: queries and keys have the same cu_seqlens: the caller gave one.
    """

    batch: int
    max_seqlen_q: int
    max_seqlen_k: int
    shared_lengths: bool = False

    @property
    def alignment_matters(self) -> bool:
        """Whether another `align` is another answer."""
        if not self.positional:
            return False
        return self.align in ("offset", "offsets") or not self.shared_lengths

    @property
    def empty(self) -> bool:
        return any(holds(size == 0) for size in (self.batch, self.max_seqlen_q, self.max_seqlen_k))

    @property
    def scores(self) -> int:
        """As many as there are at most."""
        return self.nheads * self.batch * self.max_seqlen_q * self.max_seqlen_k

    def extents(self) -> dict[str, int]:
        return self._extents(self.batch, self.max_seqlen_q, self.max_seqlen_k)

    def _shapes(self) -> list[str]:
        """q, k, v, their sequences, and what they are on, for `str`."""
        keys = "as q" if self.shared_lengths else f"up to {self.max_seqlen_k}"
        return [
            f"q=(total_q, {self.nheads}, {self.headdim})",
            f"k=(total_k, {self.nheads_k}, {self.headdim})",
            f"v=(total_k, {self.nheads_k}, {self.headdim_v})",
            f"up to {self.batch} sequences of up to {self.max_seqlen_q} queries, keys {keys}",
            dtype_name(self.dtype),
            self.place,
        ]


def described(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: int,
    shared_lengths: bool,
    bounds: Mapping[str, int],
    align: Any,
    options: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The fields of a checked call's request that ops share. bounds: max_seqlen_q and max_seqlen_k. options: by name,
    causal, window, scale, softcap, deterministic. tensors: the optional ones."""
    device, arch = device_and_arch(q.device)
    window = checks.as_window(options["window"])
    if not (options["causal"] or window is not None or "alibi_slopes" in tensors):
        # Where nothing depends on the diagonal, it may as well lie where every kernel has it.
        align = "bottom_right"
    # Sizes that change from step to step are no part of a plan; in a graph of torch.compile they are what they are.
    rounded = (lambda size: size) if is_dynamo_compiling() else bucket
    return {
        "device": device,
        "arch": arch,
        "dtype": q.dtype,
        "batch": rounded(batch),
        "max_seqlen_q": rounded(bounds["max_seqlen_q"]),
        "max_seqlen_k": rounded(bounds["max_seqlen_k"]),
        "shared_lengths": shared_lengths,
        "nheads": q.shape[1],
        "nheads_k": k.shape[1],
        "headdim": q.shape[2],
        "headdim_v": v.shape[2],
        "causal": bool(options["causal"]),
        "window": window,
        "align": kind_of_align(align),
        "scale": checks.as_float(options["scale"]),
        "softcap": checks.as_float(options["softcap"]),
        "deterministic": bool(options["deterministic"]),
        "batch_invariant": options["deterministic"] == "batch",
        **{name: checks.spec(tensor) for name, tensor in tensors.items()},
    }


def read_bounds(max_seqlen_q: Any, max_seqlen_k: Any, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> dict[str, int]:
    """Both bounds by name, as given, or read from cu_seqlens."""
    return {
        "max_seqlen_q": lengths.bound("max_seqlen_q", max_seqlen_q, cu_seqlens_q),
        "max_seqlen_k": lengths.bound("max_seqlen_k", max_seqlen_k, cu_seqlens_k),
    }


def kind_of_align(align: Any) -> Any:
    """What of an alignment decides a plan: of an offset, or of one a sequence, that it is one."""
    if isinstance(align, Tensor):
        return "offsets"
    return "offset" if is_int32(align) else align


def by_sequence(tensor: Tensor) -> tuple[int, ...]:
    """The dimension of an optional tensor that has one number a sequence: of slopes (batch, nheads) and of align."""
    per_sequence = tensor.dim() == 2 or not tensor.is_floating_point()
    return (0,) if per_sequence else ()


def check_cu_seqlens(cu_seqlens_q: Any, cu_seqlens_k: Any, q: Tensor) -> None:
    """Both of them but for their values."""
    lengths.check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q)
    lengths.check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, q)
    checks.check_size("cu_seqlens_k", "size", cu_seqlens_k.shape[0], cu_seqlens_q.shape[0], "cu_seqlens_q")


def check_main(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor, tokens in (("q", q, "total_q"), ("k", k, "total_k"), ("v", v, "total_k")):
        checks.check_tensor(name, tensor)
        if tensor.dim() != 3:
            hint = "Padded batches are for attention." if tensor.dim() == 4 else ""
            want = f"3 dimensions ({tokens}, nheads, headdim)"
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", want, hint)
        checks.check_floating(name, tensor)
        checks.check_heads(name, tensor)
        checks.check_dense(name, tensor)
    for name, tensor in (("k", k), ("v", v)):
        checks.check_like(name, tensor, "q", q)
    checks.check_size("k", "headdim", k.shape[2], q.shape[2], "q")
    checks.check_size("v", "total_k", v.shape[0], k.shape[0], "k")
    checks.check_size("v", "nheads_k", v.shape[1], k.shape[1], "k")
    checks.check_groups(q.shape[1], k.shape[1])


def _check_free_sizes(k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, align: Any, slopes: Any) -> None:
    """Those that must agree from call to call."""
    if all(checks.has_rank(each, 3) for each in (k, v)):
        checks.check_size("v", "total_k", v.shape[0], k.shape[0], "k")
    if not lengths.are_cu_seqlens(cu_seqlens_q, cu_seqlens_k):
        return
    checks.check_size("cu_seqlens_k", "size", cu_seqlens_k.shape[0], cu_seqlens_q.shape[0], "cu_seqlens_q")
    batch = cu_seqlens_q.shape[0] - 1
    if checks.has_rank(align, 1) and align.shape[0] != batch:
        raise InvalidArgumentError("align", f"shape {tuple(align.shape)}", f"({batch},)")
    if checks.has_rank(slopes, 2) and slopes.shape[0] != batch:
        raise InvalidArgumentError("alibi_slopes", f"shape {tuple(slopes.shape)}", f"({batch}, nheads)")


def check_options(options: Mapping[str, Any], align: Any, tensors: Mapping[str, Tensor], q: Tensor, batch: int) -> None:
    """Those that ops share. tensors: the optional ones, by name."""
    for name in ("causal", "check"):
        checks.check_flag(name, options[name])
    checks.check_deterministic(options["deterministic"])
    if isinstance(align, Tensor):
        checks.check_option("align", align, q, "int32", {"(batch,)": (batch,)})
    else:
        checks.check_align(align, ", a (batch,) int32 tensor of offsets")
    checks.check_window(options["window"])
    checks.check_scale(options["scale"])
    checks.check_softcap(options["softcap"])
    if "alibi_slopes" in tensors:
        slopes = tensors["alibi_slopes"]
        nheads = q.shape[1]
        shapes = {"(nheads,)": (nheads,), "(batch, nheads)": (batch, nheads)}
        checks.check_option("alibi_slopes", slopes, q, "float32", shapes)
        checks.check_without_grad("alibi_slopes", slopes, "Detach it; slopes have no gradient in xattn.")


def check_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    align: object = None,
    alibi_slopes: Tensor | None = None,
    check: bool = False,
    **others: object,
) -> None:
    """Check the sizes that a plan does not depend on, and the values that no shape tells: cu_seqlens, the bounds, and
    alibi_slopes.

    Values on the CPU, and on a device where `check` asks for it, which stops the stream. May run before a call is
    described, so it passes over what that rejects.
    """
    _check_free_sizes(k, v, cu_seqlens_q, cu_seqlens_k, align, alibi_slopes)
    for side, tensor, cu_seqlens, bound in (
        ("q", q, cu_seqlens_q, max_seqlen_q),
        ("k", k, cu_seqlens_k, max_seqlen_k),
    ):
        packed = checks.has_rank(tensor, 3) and lengths.are_cu_seqlens(cu_seqlens)
        if packed and checks.readable(cu_seqlens, torch.int32, on_device=check):
            lengths.check_lengths(f"cu_seqlens_{side}", cu_seqlens, tensor, f"max_seqlen_{side}", bound)
    checks.check_slopes(alibi_slopes)
