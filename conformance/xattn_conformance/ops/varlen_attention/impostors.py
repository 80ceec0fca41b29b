"""Impostors of packed sequences: see `Impostor`."""

from __future__ import annotations

from itertools import pairwise

from xattn_conformance.ops.splits import Arguments, Sequences, impostors


def _sequences(arguments: Arguments) -> Sequences:
    starts = arguments["cu_seqlens_q"].tolist()
    ends = arguments.get("cu_seqlens_k", arguments["cu_seqlens_q"]).tolist()
    pairs = zip(pairwise(starts), pairwise(ends), strict=True)
    return [(arguments["q"][a:b], arguments["k"][c:d], arguments["v"][c:d]) for (a, b), (c, d) in pairs]


IMPOSTORS = impostors("varlen_attention", "varlen", _sequences)
