"""Every way to call `paged_mqa_logits` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.paged_mqa_logits.samples import FP8, indexed, scale
from sample import Illegal, Sample

from xattn import PagedBatch

# total_q 6 of which 5 are in 3 sequences, nheads 4, headdim 8; 13 blocks of 4.
Q, K, W, TABLE, KEYS, CU = indexed()
Q8, K8 = Q.to(FP8), K.to(FP8)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "q padded": ({"q": Q[:, None]}, "q", ("shape (6, 1, 4, 8)", "(total_q, nheads, headdim)", "q.squeeze(1)")),
    "q without heads": ({"q": Q[:, :0]}, "q", ("at least one head",)),
    "k_cache None": ({"k_cache": None}, "k_cache", ("got None",)),
    "k_cache without heads": ({"k_cache": K.squeeze(2)}, "k_cache", ("shape (13, 4, 8)", "4 dimensions")),
    "k_cache of heads": ({"k_cache": K.expand(-1, -1, 2, -1)}, "k_cache",
                         ("nheads_k 2", "1, the nheads_k of an indexer")),
    "k_cache of another headdim": ({"k_cache": K[..., :4]}, "k_cache", ("headdim 4", "8, the headdim of q")),
    "k_cache of another dtype": ({"k_cache": K.half()}, "k_cache", ("float16", "float32, the dtype of q")),
    "k_cache elsewhere": ({"k_cache": K.to("meta")}, "k_cache", ("device meta",)),
    "weights of other heads": ({"weights": W[:, :3]}, "weights", ("shape (6, 3)", "(total_q, nheads) = (6, 4)")),
    "weights of other rows": ({"weights": W[:4]}, "weights", ("shape (4, 4)", "6")),
    "weights bfloat16": ({"weights": W.bfloat16()}, "weights", ("bfloat16", "float32", "weights.float()")),
    "a batch and its parts": (
        {"block_table": PagedBatch(TABLE, KEYS, CU)},
        "seqlens_k",
        ("None beside a PagedBatch",),
    ),
    "block_table None": ({"block_table": None}, "block_table", ("got None",)),
    "block_table int64": ({"block_table": TABLE.long()}, "block_table", ("int64", "block_table.int()")),
    "a page that is not there": (
        {"block_table": torch.full_like(TABLE, 13)},
        "block_table",
        ("page 13 of sequence 0", "0 to 12"),
    ),
    "seqlens_k of another batch": ({"seqlens_k": KEYS[:2]}, "seqlens_k", ("shape (2,)", "(3,)")),
    "lengths past the table": ({"seqlens_k": ints(6, 2, 13)}, "seqlens_k", ("13 at 2", "0 to 12")),
    "cu_seqlens_q past the tokens": ({"cu_seqlens_q": ints(0, 3, 3, 7)}, "cu_seqlens_q",
                                     ("7 as its last", "at most 6")),
    "no cu_seqlens_q": ({"cu_seqlens_q": None}, "q", ("total_q 6", "3, one for each sequence", "one query")),
    "max_seqlen_k None": ({"max_seqlen_k": None}, "max_seqlen_k", ("got None", "the width of the result")),
    "max_seqlen_k a float": ({"max_seqlen_k": 9.0}, "max_seqlen_k", ("got 9.0", "an int >= 0")),
    "max_seqlen_k too small": ({"max_seqlen_k": 8}, "max_seqlen_k", ("got 8", "at least 9, the length of sequence 2")),
    "check a str": ({"check": "yes"}, "check", ("'yes'", "True or False")),
    "FP8 without a scale": ({"q": Q8, "k_cache": K8}, "k_scale", ("got None", "float8_e4m3fn keys", "a factor of")),
    "a scale beside float32": ({"k_scale": scale()}, "k_scale", ("a scale", "None beside float32 keys")),
    "a scale of blocks": (
        {"q": Q8, "k_cache": K8, "k_scale": scale()[:, 0]},
        "k_scale",
        ("shape (13, 1)", "(num_blocks, block_size, 1) = (13, 4, 1)"),
    ),
    "a scale float64": ({"q": Q8, "k_cache": K8, "k_scale": scale().double()}, "k_scale", ("float64", "float32")),
}  # fmt: skip

IN_PLACE = {"q": Q, "k_cache": K, "weights": W, "block_table": TABLE, "seqlens_k": KEYS, "cu_seqlens_q": CU}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    named = {name: value for name, value in arguments.items() if name not in IN_PLACE}
    return Sample(in_place, {"max_seqlen_k": 12, **named})


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    fine = (made({}), made({"check": True}), made({"q": Q8, "k_cache": K8, "k_scale": scale()}))
    return {name: Illegal(made(arguments), argument, said, fine) for name, (arguments, argument, said) in WRONG.items()}
