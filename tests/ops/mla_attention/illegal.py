"""Every way to call `mla_attention` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.mla_attention.samples import latents, slots_of
from sample import Illegal, Sample
from torch import Tensor

import xattn

# total_q 6, 3 sequences, nheads 4, kv_lora_rank 6, rope_dim 2; 13 blocks of 4, 3 a sequence.
CALL = latents()
Q, KV, TABLE, KEYS, CU = CALL
SLOTS = slots_of(CALL)
INT8, FP8 = KV.to(torch.int8), KV.nan_to_num().to(torch.float8_e4m3fn)
FP8_Q = Q.to(torch.float8_e4m3fn)
ONE = torch.ones(())


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def changed(tensor: Tensor, row: int, column: int, value: int) -> Tensor:
    other = tensor.clone()
    other[row, column] = value
    return other


LEGAL: dict[str, Any] = {
    "scale": 1.0,
    "kv_lora_rank": 4,
    "topk_indices": None,
    "causal": False,
    "softcap": 1.0,
    "sinks": torch.ones(4),
    "q_scale": None,
    "kv_scale": None,
    "out_dtype": torch.float32,
    "max_seqlen_q": 3,
    "max_seqlen_k": 9,
    "unseen_finite": True,
    "deterministic": True,
    "return_lse": True,
    "check": True,
}

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "q padded": ({"q": Q[:, None]}, "q", ("shape (6, 1, 4, 8)", "(total_q, nheads, headdim)", "q.squeeze(1)")),
    "q without heads": ({"q": Q[:, :0]}, "q", ("at least one head",)),
    "q strided": ({"q": Q.transpose(1, 2).contiguous().transpose(1, 2)}, "q", ("q.contiguous()",)),
    "q integers": ({"q": Q.int()}, "q", ("got int32", "floating-point")),
    # The cache.
    "cache elsewhere": ({"kv_cache": KV.to("meta")}, "kv_cache", ("device meta", "cpu, the device of q")),
    "cache flat": ({"kv_cache": KV.flatten(0, 1)}, "kv_cache", ("shape (52, 1, 8)", "(num_blocks, block_size,")),
    "blocks of nothing": ({"kv_cache": KV[:, :0]}, "kv_cache", ("a block_size of at least 1",)),
    "two heads": ({"kv_cache": KV.expand(-1, -1, 2, -1)}, "kv_cache", ("nheads_k 2", "1", "`paged_attention`")),
    "cache without the rope part": (
        {"kv_cache": KV[..., :6].contiguous()},
        "kv_cache",
        ("last dimension 6", "8, the last dimension of q", "kv_lora_rank + rope_dim"),
    ),
    "cache of another dtype": ({"kv_cache": KV.half()}, "kv_cache", ("float16", "float32, the dtype of q")),
    "int8 without a scale": ({"kv_cache": INT8}, "kv_scale", ("got None", "the scale of the int8 cache")),
    "a scale beside float32": ({"kv_scale": ONE}, "kv_scale", ("a scale", "None beside the float32 cache")),
    "a scale of another shape": ({"kv_cache": INT8, "kv_scale": torch.ones(3)}, "kv_scale", ("shape (3,)", "()")),
    "int4 of an odd rank": (
        {"kv_cache": KV[..., :4].to(torch.uint8), "kv_scale": ONE, "kv_lora_rank": 5},
        "kv_lora_rank",
        ("got 5", "even"),
    ),
    # Queries of FP8.
    "a scale of float32 queries": ({"q_scale": ONE}, "q_scale", ("a scale", "None beside float32 queries")),
    "FP8 queries without a scale": (
        {"q": FP8_Q, "kv_cache": FP8, "kv_scale": ONE, "out_dtype": torch.float32},
        "q_scale",
        ("got None", "the scale of float8_e4m3fn queries"),
    ),
    "FP8 queries without out_dtype": (
        {"q": FP8_Q, "kv_cache": FP8, "kv_scale": ONE, "q_scale": ONE, "out_dtype": None},
        "out_dtype",
        ("got None", "torch.float32"),
    ),
    "FP8 queries, a scale each": (
        {"q": FP8_Q, "kv_cache": FP8, "kv_scale": ONE, "q_scale": torch.ones(4), "out_dtype": torch.float32},
        "q_scale",
        ("shape (4,)", "()"),
    ),
    # Table and lengths.
    "table None": ({"block_table": None}, "block_table", ("got None",)),
    "table int64": ({"block_table": TABLE.long()}, "block_table", ("int64", "int32", "block_table.int()")),
    "a page past the pool": ({"block_table": changed(TABLE, 2, 1, 13)}, "block_table", ("page 13 of sequence 2",)),
    "lengths None": ({"seqlens_k": None}, "seqlens_k", ("got None",)),
    "lengths int64": ({"seqlens_k": KEYS.long()}, "seqlens_k", ("int64", "int32", "seqlens_k.int()")),
    "a length past the table": ({"seqlens_k": ints(6, 2, 13)}, "seqlens_k", ("13 at 2", "0 to 12", "3 blocks of 4")),
    "cu_seqlens_q int64": ({"cu_seqlens_q": CU.long()}, "cu_seqlens_q", ("int64", "int32", "cu_seqlens_q.int()")),
    "sums past the tokens": ({"cu_seqlens_q": ints(0, 3, 4, 7)}, "cu_seqlens_q", ("7 as its last", "at most 6")),
    "one query each, of too many": ({"cu_seqlens_q": None}, "q", ("total_q 6", "3, one for each sequence")),
    "a bound of keys too small": ({"max_seqlen_k": 8}, "max_seqlen_k", ("got 8", "at least 9, the length of")),
    "a bound of queries a float": ({"max_seqlen_q": 3.0}, "max_seqlen_q", ("got 3.0", "an int >= 0 of 32 bits")),
    "a batch and lengths": (
        {"block_table": xattn.PagedBatch(TABLE, KEYS, CU), "cu_seqlens_q": None},
        "seqlens_k",
        ("None beside a PagedBatch",),
    ),
    # Options.
    "scale None": ({"scale": None}, "scale", ("got None", "a finite float", "192 ** -0.5 of 128 + 64")),
    "scale nan": ({"scale": float("nan")}, "scale", ("got nan", "a finite float")),
    "rank None": ({"kv_lora_rank": None}, "kv_lora_rank", ("got None", "an int from 1 to 8, the width of q")),
    "rank 0": ({"kv_lora_rank": 0}, "kv_lora_rank", ("got 0", "an int from 1 to 8")),
    "rank past the width": ({"kv_lora_rank": 9}, "kv_lora_rank", ("got 9", "an int from 1 to 8")),
    "rank a fraction": ({"kv_lora_rank": 5.5}, "kv_lora_rank", ("got 5.5", "an int from 1 to 8")),
    "causal None": ({"causal": None}, "causal", ("got None", "True or False")),
    "check a str": ({"check": "yes"}, "check", ("'yes'", "True or False")),
    "return_lse 2": ({"return_lse": 2}, "return_lse", ("got 2", "True or False")),
    "unseen_finite None": ({"unseen_finite": None}, "unseen_finite", ("got None", "True or False")),
    "deterministic None": ({"deterministic": None}, "deterministic", ("got None", 'True, False or "batch"')),
    "softcap 0": ({"softcap": 0.0}, "softcap", ("a float > 0, or None", "None switches it off")),
    "out_dtype narrow": ({"out_dtype": torch.bfloat16}, "out_dtype", ("bfloat16", "torch.float32 or the dtype of q")),
    "sinks of another length": ({"sinks": torch.ones(3)}, "sinks", ("shape (3,)", "(4,)")),
    # A list of slots.
    "slots int64": ({"topk_indices": SLOTS.long()}, "topk_indices", ("int64", "int32", "topk_indices.int()")),
    "slots of one dimension": ({"topk_indices": SLOTS[:, 0]}, "topk_indices", ("shape (6,)", "(total_q, topk)")),
    "slots of fewer queries": ({"topk_indices": SLOTS[:5]}, "topk_indices", ("shape (5, 5)", "a row for each of q")),
    "slots elsewhere": ({"topk_indices": SLOTS.to("meta")}, "topk_indices", ("device meta",)),
    "a slot past the cache": (
        {"topk_indices": changed(SLOTS, 3, 1, 52)}, "topk_indices", ("52 at (3, 1)", "0 to 51, the last slot")
    ),
    "a slot before -1": ({"topk_indices": changed(SLOTS, 0, 3, -2)}, "topk_indices", ("-2 at (0, 3)", "-1, which is")),
    "a slot twice": (
        {"topk_indices": changed(SLOTS, 4, 1, int(SLOTS[4, 0]))},
        "topk_indices",
        (f"{int(SLOTS[4, 0])} twice in row 4", "each slot once"),
    ),
    "slots beside sums past the tokens": (
        {"topk_indices": SLOTS, "cu_seqlens_q": ints(0, 3, 4, 7)}, "cu_seqlens_q", ("7 as its last", "at most 6")
    ),
}  # fmt: skip

IN_PLACE = {"q": Q, "kv_cache": KV, "block_table": TABLE, "seqlens_k": KEYS, "cu_seqlens_q": CU}
REQUIRED = {"scale": 0.4, "kv_lora_rank": 6}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    named = {name: value for name, value in arguments.items() if name not in IN_PLACE}
    return Sample(in_place, {**REQUIRED, **named})


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    return {
        name: Illegal(made(arguments), argument, said, beside(set(arguments) - set(IN_PLACE)))
        for name, (arguments, argument, said) in WRONG.items()
    }


def beside(names: set[str]) -> tuple[Sample, ...]:
    legal = {name: LEGAL[name] for name in sorted(names)}
    return made({}), made({"max_seqlen_q": 3, "max_seqlen_k": 9}), made(legal)
