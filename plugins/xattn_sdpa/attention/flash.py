"""Attention by the flash kernel in torch's CUDA builds, called below F.scaled_dot_product_attention: it takes BSNH,
windows, and causal from the bottom right, and returns lse. Facts beside the code were measured on an NVIDIA H200 with
torch 2.11."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.plugin.devices import device_and_arch
from xattn.plugin.geometry import Geometry
from xattn_sdpa.attention import cudnn
from xattn_sdpa.attention.aligned import aligned
from xattn_sdpa.attention.problem import Problem, zero_result

_forward = torch.ops.aten._flash_attention_forward
_backward = torch.ops.aten._flash_attention_backward

_DTYPES = (torch.float16, torch.bfloat16)


def counted(geometry: Geometry) -> Geometry | None:
    """Of all queries and the keys that some query sees, counted from the bottom right, which is how the kernel counts.
    None if the kernel cannot serve it; no keys if no query sees one."""
    part = geometry.part(0, geometry.seqlen_q, geometry.first_k, geometry.end_k)
    if part.seqlen_k == 0:
        return part
    found = part.recounted(part.seqlen_k - part.seqlen_q).opened()
    left, right = found.band
    if (left is not None and left < 0) or (right is not None and right < 0):
        return None
    # With more queries than keys the kernel mistakes an open right side beside a left one, and a right side of
    # seqlen_k or more.
    if found.offset < 0 and found.band != (None, None) and (right is None or right >= found.seqlen_k):
        return None
    return found


def serves(*, dtype: torch.dtype, headdim: int, headdim_v: int, geometry: Geometry) -> bool:
    """Whether the kernel can serve a call that has no softcap, ALiBi, mask, bias or seqlens_k."""
    if not takes(dtype=dtype, headdim=headdim, headdim_v=headdim_v):
        return False
    return geometry.seqlen_q > 0 and geometry.seqlen_k > 0 and counted(geometry) is not None


def serves_ragged(*, dtype: torch.dtype, headdim: int, headdim_v: int, left: int | None, right: int | None) -> bool:
    """Whether the kernel can serve a forward call with seqlens_k, all else as for `serves`."""
    takes_these = takes(dtype=dtype, headdim=headdim, headdim_v=headdim_v)
    return takes_these and (right == 0 or (left is None and right is None))


def takes(*, dtype: torch.dtype, headdim: int, headdim_v: int) -> bool:
    """Whether the kernel takes such tensors."""
    return torch.version.hip is None and dtype in _DTYPES and headdim <= 256 and headdim_v <= 256


def width(headdim: int, headdim_v: int) -> int:
    """The one head size of q, k and v that the kernel gets, a multiple of 8: zeros change no score and no output."""
    return -(-max(headdim, headdim_v) // 8) * 8


def kernel_form(x: Tensor, columns: int) -> Tensor:
    """x as the kernel must have it: of its width, with 16-byte aligned rows. A copy where it is not; the kernel would
    take the process down with a misaligned address."""
    if x.shape[-1] != columns:
        return F.pad(x, (0, columns - x.shape[-1]))
    return aligned(x)


def _operands(problem: Problem, keys: slice) -> list[Tensor]:
    columns = width(problem.q.shape[3], problem.v.shape[3])
    return [kernel_form(x, columns) for x in (problem.q, problem.k[:, keys], problem.v[:, keys])]


def sides(left: int | None, right: int | None) -> dict[str, int]:
    return {"window_size_left": -1 if left is None else left, "window_size_right": -1 if right is None else right}


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """As `fused.forward`."""
    geometry = problem.geometry
    found = counted(geometry)
    assert found is not None
    if found.seqlen_k == 0:
        return zero_result(problem)
    q, k, v = _operands(problem, slice(geometry.first_k, geometry.end_k))
    left, right = found.band
    causal = left is None and right == 0
    if _for_cudnn(q, k, v, left, right, grads=False):
        out, lse = cudnn.forward(q, k, v, causal, problem.scale)
        return _finish(out, problem), lse
    window = {} if causal else sides(left, right)
    out, lse, *_ = _forward(
        q, k, v, None, None, found.seqlen_q, found.seqlen_k, 0.0, causal, False, scale=problem.scale, **window
    )
    return _finish(out, problem), lse.masked_fill(lse == torch.inf, -torch.inf)


def _for_cudnn(q: Tensor, k: Tensor, v: Tensor, left: int | None, right: int | None, grads: bool) -> bool:
    """Whether cuDNN computes the same, and faster by more than its plan costs. grads: in the backward pass."""
    full = left is None and right is None
    causal = left is None and right == 0 and q.shape[1] == k.shape[1]
    if not (full or causal) or device_and_arch(q.device)[1] not in cudnn.ARCHS:
        return False
    sizes = q.shape[0], q.shape[2], q.shape[1], k.shape[1], q.shape[3], v.shape[3]
    if not cudnn.fits(q.shape[3], v.shape[3], k.shape[1]):
        return False
    if grads and not cudnn.backward_is_right(q.shape[1], k.shape[1]):
        return False
    return cudnn.pays(sizes, full=full, grads=grads)


def _finish(out: Tensor, problem: Problem) -> Tensor:
    return out[..., : problem.v.shape[3]].contiguous()


def forward_ragged(problem: Problem, seqlens_k: Tensor) -> tuple[Tensor, Tensor]:
    """`forward` with a number of valid keys for each batch row, read on the device alone. Keys outside are not read."""
    batch, seqlen_q, nheads, _ = problem.q.shape
    seqlen_k = problem.k.shape[1]
    q, k, v = _operands(problem, slice(None))
    lengths = seqlens_k.to(torch.int32)
    # A row's keys start where its first query's window does: the kernel must not even load the ones before.
    starts = torch.zeros_like(lengths) if problem.left is None else (lengths - seqlen_q - problem.left).clamp_min(0)
    rows = torch.arange(batch + 1, device=q.device, dtype=torch.int32)
    starts_k = rows * seqlen_k
    starts_k[:-1] += starts
    causal = problem.left is None and problem.right == 0
    window = {} if causal else sides(problem.left, problem.right)
    out, lse, *_ = _forward(
        q.reshape(batch * seqlen_q, *q.shape[2:]),
        k.reshape(batch * seqlen_k, *k.shape[2:]),
        v.reshape(batch * seqlen_k, *v.shape[2:]),
        rows * seqlen_q,
        starts_k,
        seqlen_q,
        seqlen_k,
        0.0,
        causal,
        False,
        scale=problem.scale,
        seqused_k=lengths - starts,
        **window,
    )
    out = out.view(batch, seqlen_q, nheads, out.shape[2])
    lse = lse.view(nheads, batch, seqlen_q).transpose(0, 1).contiguous()
    return _finish(out, problem), lse.masked_fill(lse == torch.inf, -torch.inf)


def backward(problem: Problem, dout: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
    """As `fused.backward`."""
    geometry = problem.geometry
    found = counted(geometry)
    assert found is not None
    if found.seqlen_k == 0:
        return
    keys = slice(geometry.first_k, geometry.end_k)
    q, k, v = _operands(problem, keys)
    left, right = found.band
    causal = left is None and right == 0
    window = {} if causal else sides(left, right)
    # The kernel takes lse by its memory, whatever its strides say.
    lse = lse.masked_fill(lse == -torch.inf, torch.inf).contiguous()
    dout, out = kernel_form(dout, q.shape[3]), kernel_form(out, q.shape[3])
    if _for_cudnn(q, k, v, left, right, grads=True):
        grads = cudnn.backward(dout, q, k, v, out, lse, causal, problem.scale)
    else:
        sizes = found.seqlen_q, found.seqlen_k
        # No cu_seqlens, and no state of a random generator: there is no dropout.
        grads = _backward(
            dout, q, k, v, out, lse, None, None, *sizes, 0.0, causal, None, None, scale=problem.scale, **window
        )
    for total, part, grad in ((dq, slice(None), grads[0]), (dk, keys, grads[1]), (dv, keys, grads[2])):
        total[:, part] += grad[..., : total.shape[3]]
