"""Legal calls of `varlen_attention_backward`, no two of one kind, which together use every word."""

from __future__ import annotations

from dataclasses import replace

import torch
from ops.varlen_attention.samples import samples as forward_samples
from sample import Sample
from torch import Tensor


def with_results(q: Tensor, k: Tensor, v: Tensor, *lengths: Tensor) -> tuple[Tensor, ...]:
    """dout, q, k, v, out, lse and cu_seqlens: the results of more keys than there are here."""
    generator = torch.Generator().manual_seed(2)
    shape = (*q.shape[:2], v.shape[2])
    dout, out = (torch.randn(shape, generator=generator).to(q.dtype) for _ in range(2))
    lse = 3.0 + torch.rand(q.shape[1], q.shape[0], generator=generator)
    return dout, q, k, v, out, lse, *lengths


def samples(length: int = 5) -> dict[str, Sample]:
    """length: of the longest sequence of queries. Those of `varlen_attention`, with what it returned."""
    found = {name: sample for name, sample in forward_samples(length).items() if "lse" not in name}
    return {
        name: replace(sample, tensors=with_results(*sample.tensors), differentiable=(0, 1, 2, 3, 4, 5))
        for name, sample in found.items()
    }
