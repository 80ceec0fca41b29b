"""Every way to call `paged_attention` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.paged_attention.samples import fp8, paged
from sample import Illegal, Sample
from torch import Tensor

import xattn

# total_q 6, 3 sequences, nheads 4, nheads_k 2, headdim 8, headdim_v 6; 13 blocks of 4, 3 a sequence.
Q, K, V, TABLE, KEYS, CU = paged(headdim_v=6)
INT8 = K.to(torch.int8)
ONE = torch.ones(())


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def table(b: int, column: int, page: int) -> Tensor:
    changed = TABLE.clone()
    changed[b, column] = page
    return changed


LEGAL: dict[str, Any] = {
    "max_seqlen_q": 3,
    "max_seqlen_k": 9,
    "causal": False,
    "window": (1, 0),
    "align": "top_left",
    "scale": 1.0,
    "softcap": 1.0,
    "unseen_finite": True,
    "deterministic": True,
    "return_lse": True,
    "check": True,
    "sinks": ones(4),
    "alibi_slopes": ones(4),
    "tree_mask": ones(6, 3, dtype=torch.bool),
    "out_dtype": torch.float32,
    "k_scale": None,
    "q_scale": None,
}

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "q padded": ({"q": Q[:, None]}, "q", ("shape (6, 1, 4, 8)", "(total_q, nheads, headdim)", "q.squeeze(1)")),
    "q without heads": ({"q": Q[:, :0]}, "q", ("at least one head",)),
    "q strided": ({"q": Q.transpose(1, 2).contiguous().transpose(1, 2)}, "q", ("q.contiguous()",)),
    "q integers": ({"q": Q.int()}, "q", ("got int32", "floating-point")),
    "k_cache elsewhere": ({"k_cache": K.to("meta")}, "k_cache", ("device meta", "cpu, the device of q")),
    "q of other heads": ({"q": Q[:, :3]}, "k_cache", ("nheads_k 2", "a divisor of nheads, which is 3")),
    "q of another headdim": ({"q": Q[..., :4].contiguous()}, "k_cache", ("headdim 8", "4, the headdim of q")),
    "k_cache flat": ({"k_cache": K.flatten(0, 1)}, "k_cache", ("shape (52, 2, 8)", "(num_blocks, block_size,")),
    "blocks of nothing": ({"k_cache": K[:, :0]}, "k_cache", ("a block_size of at least 1",)),
    "mixed page sizes": ({"v_cache": V[:, :2]}, "v_cache", ("block_size 2", "4, the block_size of k_cache")),
    "v_cache of fewer blocks": ({"v_cache": V[:5]}, "v_cache", ("num_blocks 5", "13, the num_blocks of k_cache")),
    "k_cache of another dtype": ({"k_cache": K.half()}, "k_cache", ("float16", "float32, the dtype of q")),
    "int8 without a scale": ({"k_cache": INT8}, "k_scale", ("got None", "the scale of the int8 cache")),
    "a scale beside float32": ({"k_scale": ONE}, "k_scale", ("a scale", "None beside the float32 cache")),
    "a scale of float32 queries": ({"q_scale": ONE}, "q_scale", ("a scale", "None beside float32 queries")),
    # Table and lengths.
    "table None": ({"block_table": None}, "block_table", ("got None",)),
    "table int64": ({"block_table": TABLE.long()}, "block_table", ("int64", "int32", "block_table.int()")),
    "table of one dimension": ({"block_table": TABLE[0]}, "block_table", ("shape (3,)", "(batch, pages)")),
    "table elsewhere": ({"block_table": TABLE.to("meta")}, "block_table", ("device meta",)),
    "a page past the pool": ({"block_table": table(2, 1, 13)}, "block_table", ("page 13 of sequence 2", "0 to 12")),
    "a page of -1": ({"block_table": table(0, 0, -1)}, "block_table", ("page -1 of sequence 0", "0 to 12")),
    "lengths None": ({"seqlens_k": None}, "seqlens_k", ("got None",)),
    "lengths int64": ({"seqlens_k": KEYS.long()}, "seqlens_k", ("int64", "int32", "seqlens_k.int()")),
    "lengths of another batch": ({"seqlens_k": KEYS[:2]}, "seqlens_k", ("shape (2,)", "(3,)")),
    "a length past the table": ({"seqlens_k": ints(6, 2, 13)}, "seqlens_k", ("13 at 2", "0 to 12", "3 blocks of 4")),
    "a length below 0": ({"seqlens_k": ints(6, -1, 9)}, "seqlens_k", ("-1 at 1", "0 to 12")),
    # cu_seqlens_q.
    "cu_seqlens_q int64": ({"cu_seqlens_q": CU.long()}, "cu_seqlens_q", ("int64", "int32", "cu_seqlens_q.int()")),
    "cu_seqlens_q of another batch": ({"cu_seqlens_q": CU[:3]}, "cu_seqlens_q", ("shape (3,)", "(4,)")),
    "lengths, not their sums": ({"cu_seqlens_q": ints(3, 3, 5, 6)}, "cu_seqlens_q", ("3 as its first value, want 0",)),
    "sums that decrease": ({"cu_seqlens_q": ints(0, 3, 2, 5)}, "cu_seqlens_q", ("3, 2 at 1", "do not decrease")),
    "sums past the tokens": ({"cu_seqlens_q": ints(0, 3, 4, 7)}, "cu_seqlens_q", ("7 as its last", "at most 6")),
    "one query each, of too many": ({"cu_seqlens_q": None}, "q", ("total_q 6", "3, one for each sequence")),
    # Bounds.
    "a bound of keys too small": ({"max_seqlen_k": 8}, "max_seqlen_k", ("got 8", "at least 9, the length of")),
    "a bound of queries too small": ({"max_seqlen_q": 2}, "max_seqlen_q", ("got 2", "at least 3, the length of")),
    "a bound below 0": ({"max_seqlen_q": -1}, "max_seqlen_q", ("got -1",)),
    "a bound a float": ({"max_seqlen_k": 9.0}, "max_seqlen_k", ("got 9.0", "an int >= 0 of 32 bits, or None")),
    "a bound a tensor": ({"max_seqlen_k": KEYS.max()}, "max_seqlen_k", ("an int >= 0 of 32 bits, or None",)),
    # A batch object beside its own parts.
    "a batch and lengths": (
        {"block_table": xattn.PagedBatch(TABLE, KEYS, CU), "cu_seqlens_q": None},
        "seqlens_k",
        ("None beside a PagedBatch",),
    ),
    "a batch and a bound": (
        {"block_table": xattn.PagedBatch(TABLE, KEYS, CU), "cu_seqlens_q": None, "seqlens_k": None, "max_seqlen_k": 9},
        "max_seqlen_k",
        ("got 9", "None beside a PagedBatch"),
    ),
    "a batch and sums": (
        {"block_table": xattn.PagedBatch(TABLE, KEYS, CU), "seqlens_k": None},
        "cu_seqlens_q",
        ("None beside a PagedBatch",),
    ),
    "a batch and a bound of queries": (
        {"block_table": xattn.PagedBatch(TABLE, KEYS, CU), "cu_seqlens_q": None, "seqlens_k": None, "max_seqlen_q": 3},
        "max_seqlen_q",
        ("got 3", "None beside a PagedBatch"),
    ),
    # Options.
    "causal None": ({"causal": None}, "causal", ("got None", "True or False")),
    "check a str": ({"check": "yes"}, "check", ("'yes'", "True or False")),
    "return_lse 2": ({"return_lse": 2}, "return_lse", ("got 2", "True or False")),
    "unseen_finite None": ({"unseen_finite": None}, "unseen_finite", ("got None", "True or False")),
    "deterministic None": ({"deterministic": None}, "deterministic", ("got None", 'True, False or "batch"')),
    "align misspelt": ({"align": "bottom-right"}, "align", ("'bottom-right'", "a (batch,) int32 tensor", "an int")),
    "align beyond 32 bits": ({"align": 2**70}, "align", (f"got {2**70}", "an int of 32 bits")),
    "align int64": ({"align": ints(1, 2, 3, dtype=torch.int64)}, "align", ("int64", "int32", "align.int()")),
    "align of another batch": ({"align": ints(1, 2)}, "align", ("shape (2,)", "(3,)")),
    "window an int": ({"window": 4}, "window", ("got 4", "(left, right)", "(4 - 1, 0)")),
    "window negative": ({"window": (-1, 0)}, "window", ("None is open; xattn has no -1",)),
    "scale nan": ({"scale": float("nan")}, "scale", ("got nan", "a finite float or None")),
    "softcap 0": ({"softcap": 0.0}, "softcap", ("a float > 0, or None", "None switches it off")),
    "out_dtype narrow": ({"out_dtype": torch.bfloat16}, "out_dtype", ("bfloat16", "torch.float32 or the dtype of q")),
    # Optional tensors.
    "sinks of another length": ({"sinks": ones(3)}, "sinks", ("shape (3,)", "(4,)")),
    "slopes of another length": ({"alibi_slopes": ones(2)}, "alibi_slopes", ("shape (2,)", "(nheads,) = (4,) or")),
    "slopes 0": ({"alibi_slopes": 0 * ones(4)}, "alibi_slopes", ("slope of 0.0", "slopes > 0")),
    "slopes that want a gradient": ({"alibi_slopes": ones(4).requires_grad_()}, "alibi_slopes", ("Detach it",)),
    "a tree of floats": ({"tree_mask": ones(6, 3)}, "tree_mask", ("float32", "want bool")),
    "a tree of another width": (
        {"tree_mask": ones(6, 4, dtype=torch.bool), "max_seqlen_q": 3},
        "tree_mask",
        ("shape (6, 4)", "(6, 3)"),
    ),
    "a tree too narrow": ({"tree_mask": ones(6, 2, dtype=torch.bool)}, "max_seqlen_q", ("got 2", "at least 3")),
}  # fmt: skip

IN_PLACE = {"q": Q, "k_cache": K, "v_cache": V, "block_table": TABLE, "seqlens_k": KEYS, "cu_seqlens_q": CU}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    return Sample(in_place, {name: value for name, value in arguments.items() if name not in IN_PLACE})


def fp8_without_out_dtype() -> Sample:
    sample = fp8()
    return Sample(sample.tensors, {name: value for name, value in sample.named.items() if name != "out_dtype"})


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    found = {
        name: Illegal(made(arguments), argument, said, beside(set(arguments) - set(IN_PLACE)))
        for name, (arguments, argument, said) in WRONG.items()
    }
    found["FP8 without out_dtype"] = Illegal(fp8_without_out_dtype(), "out_dtype", ("got None", "torch.float32"))
    return found


def beside(names: set[str]) -> tuple[Sample, ...]:
    legal = {name: LEGAL[name] for name in sorted(names)}
    return made({}), made({"max_seqlen_q": 3, "max_seqlen_k": 9}), made(legal)
