"""Impostors of pages: see `Impostor`."""

from __future__ import annotations

from itertools import pairwise

import torch

from xattn_conformance.ops.splits import Arguments, Sequences, impostors


def _sequences(arguments: Arguments) -> Sequences:
    lengths = arguments["seqlens_k"].tolist()
    starts = arguments["cu_seqlens_q"].tolist() if "cu_seqlens_q" in arguments else range(len(lengths) + 1)
    block_size = arguments["k_cache"].shape[1]
    found = []
    for row, length, (start, stop) in zip(arguments["block_table"], lengths, pairwise(starts), strict=True):
        key = torch.arange(length, device=row.device)
        page, place = row[key // block_size], key % block_size
        found.append((arguments["q"][start:stop], *(arguments[name][page, place] for name in ("k_cache", "v_cache"))))
    return found


IMPOSTORS = impostors("paged_attention", "paged", _sequences)
