"""The one place that calls cuDNN's frontend, which it imports when a call needs it."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.plugin.geometry import Geometry
from xattn.plugin.notes import add_note
from xattn_nvidia.cudnn.bands import Band, alive, band
from xattn_nvidia.cudnn.installation import installation
from xattn_nvidia.shared import sequences
from xattn_nvidia.shared.packed import Ends
from xattn_nvidia.shared.settings import Settings, aligned


def forward(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor]:
    """out and lse. left, right of the settings: from the bottom right."""
    whole = Geometry(q.shape[1], k.shape[1], settings.left, settings.right, k.shape[1] - q.shape[1])
    first, end = whole.first_q, whole.end_q
    if first == end:
        batch, seqlen_q, nheads, _ = q.shape
        lse = torch.full((batch, nheads, seqlen_q), -torch.inf, device=q.device)
        return q.new_zeros(batch, seqlen_q, nheads, v.shape[3]), lse if sinks is None else lse.copy_(sinks[:, None])
    found = band(alive(whole))
    assert found is not None
    # Of a single query cuDNN takes no sinks.
    native = sinks is not None and end - first > 1
    out, lse = _op("sdpa_fwd")(
        *(aligned(x).transpose(1, 2) for x in (q[:, first:end], k, v)), settings.scale,
        sinks=sinks.float() if sinks is not None and native else None, return_lse=True, **found.options(),
    )  # fmt: skip
    out, lse = out.transpose(1, 2), lse.squeeze(3)
    if sinks is not None and not native:
        rows = sinks.float()[:, None]
        out = out * torch.sigmoid(lse - rows).transpose(1, 2).unsqueeze(3).to(out.dtype)
        lse = torch.logaddexp(lse, rows)
    if (first, end) != (0, q.shape[1]):
        after = q.shape[1] - end
        out = F.pad(out, (0, 0, 0, 0, first, after))
        whole_lse = lse.new_full((*lse.shape[:2], q.shape[1]), -torch.inf)
        if sinks is not None:
            whole_lse.copy_(sinks[:, None])
        whole_lse[:, :, first:end] = lse
        lse = whole_lse
    return out.contiguous(), lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of queries that all see a key."""
    found = band(Geometry(q.shape[1], k.shape[1], settings.left, settings.right, k.shape[1] - q.shape[1]).opened())
    assert found is not None
    dout, q, k, v, out = (aligned(x).transpose(1, 2) for x in (dout, q, k, v, out))
    grads = _op("sdpa_bwd")(dout, q, k, v, out, lse, settings.scale, **found.options())
    dq, dk, dv = (x.transpose(1, 2).contiguous() for x in grads)
    return dq, dk, dv


def packed_forward(q: Tensor, k: Tensor, v: Tensor, ends: Ends, settings: Settings) -> tuple[Tensor, Tensor]:
    """out, and lse (nheads, total_q)."""
    out, lse = _op("sdpa_fwd")(
        *map(aligned, (q, k, v)), settings.scale, return_lse=True, **_packed(ends),
        **Band(True, settings.left, settings.right).options(),
    )  # fmt: skip
    # Of no keys it makes what it finds.
    dead = sequences.dead(len(q), ends.q, ends.k, settings.left, settings.right)
    out, lse = out.masked_fill_(dead[:, None, None], 0), lse.squeeze(2).t().masked_fill(dead, -torch.inf)
    return out, lse


def _packed(ends: Ends) -> dict[str, Any]:
    """The ends with sizes rounded up to powers of two: cuDNN plans each anew, for 45 to 120 ms. Empty sequences behind
    the last one fill them up."""
    count = _bucket(len(ends.q) - 1) + 1 - len(ends.q)
    cu_q, cu_k = (torch.cat((each, each[-1:].expand(count))) for each in (ends.q, ends.k))
    sizes = {"max_seqlen_q": _bucket(ends.max_q), "max_seqlen_kv": _bucket(ends.max_k)}
    return {"cu_seqlens_q": cu_q, "cu_seqlens_kv": cu_k, **sizes}


def _bucket(size: int) -> int:
    return 1 << (size - 1).bit_length()


def handle(device: torch.device) -> Any:
    """cuDNN's handle of this thread and device, on the current stream."""
    return _module()._get_handle(device)


def frontend() -> Any:
    _module()
    return importlib.import_module("cudnn")


@functools.cache
def _module() -> Any:
    try:
        return importlib.import_module("cudnn.sdpa.fwd.torch_op")
    except Exception as error:
        what = f"xattn: that was `import cudnn.sdpa.fwd.torch_op` of {installation()}."
        add_note(error, f"{what} XATTN_DISABLE=cudnn goes without.")
        raise


def _op(name: str) -> Any:
    _module()
    return getattr(torch.ops.cudnn, name).default


def forget() -> None:
    """Forget the frontend: another one is installed."""
    _module.cache_clear()
