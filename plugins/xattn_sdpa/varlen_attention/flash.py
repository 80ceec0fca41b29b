"""Packed sequences on CUDA by torch's flash kernel, the one below `torch.nn.attention.varlen_attn`. Nothing is read
from the device, so a CUDA graph replays with other lengths."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xattn import Reason
from xattn.plugin.symbolic import holds
from xattn_sdpa.attention import engine as dense
from xattn_sdpa.attention import flash, gpu
from xattn_sdpa.attention.engine import Settings
from xattn_sdpa.varlen_attention.engine import Tensors
from xattn_sdpa.varlen_attention.sequences import MOST, Sequences, sequences

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward

NAME = "torch's flash kernel over packed sequences"


def limits(arch: str | None, batch: int) -> list[Reason]:
    """What keeps a call with so many sequences from the kernel, beside what the capability blocks say."""
    found = []
    if not gpu.has_flash(arch):
        found.append(Reason("arch", arch, "sm_80 or newer", "torch's flash kernel has no older one."))
    if holds(batch > MOST):
        found.append(Reason("batch", batch, f"at most {MOST} sequences", "Call it with some of them at a time."))
    return found


def forward(tensors: Tensors, bounds: tuple[int, int], settings: Settings) -> tuple[Tensor, Tensor]:
    """As the engine's. bounds: max_seqlen_q and max_seqlen_k."""
    q, k, v, sinks, _, cu_seqlens_q, cu_seqlens_k, _ = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    assert cu_seqlens_q is not None
    assert cu_seqlens_k is not None
    if nothing(q, k, cu_seqlens_q, bounds):
        out, lse = empty_result(q, v.shape[-1])
    else:
        given = (cu_seqlens_q, cu_seqlens_k), (len(q), len(k)), bounds, (settings.left, settings.right)
        out, lse = attend(q, k, v, sequences(*given, every_key=False), settings.scale)
    if sinks is not None:
        lse = join_sinks(out, lse, sinks, cu_seqlens_q)
    return out, lse


def nothing(q: Tensor, k: Tensor, cu_seqlens_q: Tensor, bounds: tuple[int, int]) -> bool:
    """Whether no query sees a key by the sizes alone: the kernel takes no size of 0."""
    return 0 in (len(q), len(k), len(cu_seqlens_q) - 1, *bounds)


def empty_result(q: Tensor, headdim_v: int) -> tuple[Tensor, Tensor]:
    """out and lse of queries that see no key, before sinks."""
    total_q, nheads, _ = q.shape
    out = q.new_zeros(total_q, nheads, headdim_v)
    return out, q.new_full((nheads, total_q), -torch.inf, dtype=torch.float32)


def attend(
    q: Tensor, k: Tensor, v: Tensor, found: Sequences, scale: float, used: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out and lse without sinks. used: (n,) int32, how many keys each sequence has from its first on; of its ends the
    kernel then takes the first alone."""
    causal, window = _band(found)
    out, lse, *_ = _forward(
        *_operands(q * dense.sign(scale) if scale <= 0 else q, k, v),
        found.ends_q,
        found.ends_k,
        found.bound_q,
        found.bound_k,
        0.0,
        causal,
        False,
        scale=abs(scale) or 1.0,
        seqused_k=used,
        **window,
    )
    # Of a query that sees no key the kernel says inf.
    lse.nan_to_num_(nan=torch.nan, posinf=-torch.inf, neginf=-torch.inf)
    return out[..., : v.shape[-1]].contiguous(), lse


def join_sinks(out: Tensor, lse: Tensor, sinks: Tensor, ends_q: Tensor) -> Tensor:
    """The lse with the sinks in it, and out scaled in place. A token behind the last of ends_q has none."""
    joined = dense.join_sinks(out[None], lse[None], sinks.to(lse.dtype)[None, :, None]).squeeze(0)
    return joined.masked_fill_(torch.arange(len(out), device=out.device) >= ends_q[-1], -torch.inf)


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: Tensors,
    bounds: tuple[int, int],
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As the engine's."""
    q, k, v, sinks, _, cu_seqlens_q, cu_seqlens_k, _ = tensors
    assert q is not None
    assert k is not None
    assert v is not None
    assert cu_seqlens_q is not None
    assert cu_seqlens_k is not None
    dsinks = None if sinks is None else _sink_gradients(dout, dlse, out, lse, sinks)
    if nothing(q, k, cu_seqlens_q, bounds):
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        return dq, dk, dv, dsinks
    given = (cu_seqlens_q, cu_seqlens_k), (len(q), len(k)), bounds, (settings.left, settings.right)
    found = sequences(*given, every_key=True)
    sign = dense.sign(settings.scale)
    signed = q if sign == 1.0 else q * sign
    each = _gradients(dout, dlse, out, lse, (signed, k, v), found, abs(settings.scale) or 1.0)
    dq, dk, dv = (grad[..., : x.shape[-1]].contiguous() for grad, x in zip(each, (q, k, v), strict=True))
    return dq if sign == 1.0 else dq * sign, dk, dv, dsinks


def _gradients(
    dout: Tensor,
    dlse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    found: Sequences,
    scale: float,
) -> list[Tensor]:
    """dq, dk, dv as wide as the kernel makes them."""
    q, k, v = _operands(*qkv)
    # The kernel takes lse by its memory, whatever its strides say.
    lse = lse.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=torch.inf).contiguous()
    causal, window = _band(found)

    def run(dout: Tensor, out: Tensor, v: Tensor) -> list[Tensor]:
        # No state of a random generator: there is no dropout.
        grads = _backward(
            flash.kernel_form(dout, q.shape[2]),
            q,
            k,
            v,
            flash.kernel_form(out, q.shape[2]),
            lse,
            found.ends_q,
            found.ends_k,
            found.bound_q,
            found.bound_k,
            0.0,
            causal,
            None,
            None,
            scale=scale,
            **window,
        )
        return list(grads)

    grads = run(dout, out, v)
    if dlse is not None:
        # The kernel computes weight * (dout . v - dout . out). Here that shall be weight * dlse, so v is 0.
        dq, dk, _ = run(*_in_place_of_lse(dlse, q), torch.zeros_like(v))
        grads[0], grads[1] = grads[0] + dq, grads[1] + dk
    return grads


def _in_place_of_lse(dlse: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """dout and out whose product, summed over a head, is -dlse, (nheads, total_q), to 16 bits at least."""
    dout, out = (torch.zeros(q.shape, dtype=q.dtype, device=q.device) for _ in range(2))
    rest = -dlse.t().float()
    for column, weight in enumerate((1.0, 2.0**-11)):
        out[..., column] = weight
        dout[..., column] = rest / weight
        rest = rest - dout[..., column].float() * weight
    return dout, out


def _sink_gradients(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """(nheads,) in the dtype of the sinks."""
    # With a sink no token has an lse of -inf but those of no sequence, whose gradients are not read.
    outside = lse == -torch.inf
    dout = dout.masked_fill(outside.t().unsqueeze(-1), 0.0)
    through_lse = None if dlse is None else dlse.masked_fill(outside, 0.0)[None]
    rows = sinks.to(lse.dtype)[None, :, None]
    return dense.sink_gradients(dout[None], through_lse, out[None], lse[None], rows).squeeze(0).to(sinks.dtype)


def _band(found: Sequences) -> tuple[bool, dict[str, int]]:
    causal = found.left is None and found.right == 0
    return causal, {} if causal else flash.sides(found.left, found.right)


def _operands(*qkv: Tensor) -> Iterator[Tensor]:
    columns = flash.width(qkv[0].shape[2], qkv[2].shape[2])
    return (flash.kernel_form(x, columns) for x in qkv)
