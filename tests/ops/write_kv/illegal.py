"""Every way to call `write_kv` wrongly."""

from __future__ import annotations

from typing import Any

import torch
from ops.write_kv.samples import tokens
from sample import Illegal, Sample
from torch import Tensor

# 5 tokens, 2 heads of 8 and 6, 6 blocks of 4.
K, V, K_CACHE, V_CACHE, SLOTS = tokens([3, -1, 8, 0, 23], headdim_v=6)
INT8 = torch.zeros(6, 4, 2, 8, dtype=torch.int8)


def at(*slots: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(slots, dtype=dtype)


# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "k None": ({"k": None}, "k", ("got None", "a torch.Tensor")),
    "k padded": ({"k": K[None]}, "k", ("shape (1, 5, 2, 8)", "(tokens, nheads_k, headdim)", "x.flatten(0, 1)")),
    "v of two dimensions": ({"v": V[:, 0]}, "v", ("shape (5, 6)", "(tokens, nheads_k, headdim)")),
    "k without heads": ({"k": K[:, :0]}, "k", ("at least one head",)),
    "k strided": ({"k": K.transpose(1, 2).contiguous().transpose(1, 2)}, "k", ("k.contiguous()",)),
    "integers": ({"k": K.int(), "v": V.int()}, "k", ("got int32", "floating-point")),
    "v of another dtype": ({"v": V.half()}, "v", ("float16", "float32, the dtype of k")),
    "v of fewer tokens": ({"v": V[:4]}, "v", ("tokens 4", "5, the tokens of k")),
    "v of fewer heads": ({"v": V[:, :1]}, "v", ("nheads_k 1", "2, the nheads_k of k")),
    "v None, v_cache not": ({"v": None}, "v", ("got None", "as v_cache is", "A latent cache has neither")),
    "v_cache None, v not": ({"v_cache": None}, "v_cache", ("got None", "as v is")),
    "latents of two heads": ({"v": None, "v_cache": None}, "k", ("nheads_k 2", "want 1", "a latent one")),
    # Caches.
    "k_cache None": ({"k_cache": None}, "k_cache", ("got None",)),
    "k_cache flat": ({"k_cache": K_CACHE.flatten(0, 1)}, "k_cache", ("shape (24, 2, 8)", "(num_blocks, block_size,")),
    "blocks of nothing": ({"k_cache": K_CACHE[:, :0]}, "k_cache", ("a block_size of at least 1",)),
    "v_cache of fewer blocks": ({"v_cache": V_CACHE[:5]}, "v_cache", ("num_blocks 5", "6, the num_blocks of k_cache")),
    "v_cache of smaller blocks": ({"v_cache": V_CACHE[:, :3]}, "v_cache", ("block_size 3", "4, the block_size of")),
    "v_cache of fewer heads": ({"v_cache": V_CACHE[:, :, :1]}, "v_cache", ("nheads_k 1", "2, the nheads_k")),
    "caches of fewer heads": (
        {"k_cache": K_CACHE[:, :, :1], "v_cache": V_CACHE[:, :, :1]},
        "k_cache",
        ("nheads_k 1", "2, the nheads_k of k"),
    ),
    "k_cache of another headdim": ({"k_cache": K_CACHE[..., :7]}, "k_cache", ("headdim 7", "8, the headdim of k")),
    "k_cache of another dtype": ({"k_cache": K_CACHE.half()}, "k_cache", ("float16", "float32, the dtype of k")),
    "v_cache elsewhere": ({"v_cache": V_CACHE.to("meta")}, "v_cache", ("device meta", "cpu, the device of k")),
    "one page for all": ({"k_cache": K_CACHE[:1].expand(6, -1, -1, -1)}, "k_cache", ("strides (0,", "a place for")),
    "int8 without a scale": ({"k_cache": INT8}, "k_scale", ("got None", "the scale of the int8 cache")),
    "a scale beside float32": ({"k_scale": torch.ones(())}, "k_scale", ("a scale", "None beside the float32 cache")),
    "a scale of float64": (
        {"k_cache": INT8, "k_scale": torch.ones((), dtype=torch.float64)},
        "k_scale",
        ("float64", "float32"),
    ),
    "k out of the cache": ({"k": K_CACHE[0, :1].expand(5, -1, -1)}, "k", ("a part of k_cache", "Clone it.")),
    "one cache for both": ({"v": K, "v_cache": K_CACHE}, "v_cache", ("the memory of k_cache", "two views")),
    # Slots.
    "slots None": ({"slots": None}, "slots", ("got None",)),
    "slots int32": ({"slots": SLOTS.int()}, "slots", ("int32", "int64", "slots.long()")),
    "slots elsewhere": ({"slots": SLOTS.to("meta")}, "slots", ("device meta",)),
    "a slot too few": ({"slots": SLOTS[:4]}, "slots", ("shape (4,)", "(5,)")),
    "slots of two dimensions": ({"slots": SLOTS[None]}, "slots", ("shape (1, 5)", "(5,)")),
    "a slot past the caches": ({"slots": at(3, -1, 24, 0, 1)}, "slots", ("24 at 2", "0 to 23")),
    "a slot before -1": ({"slots": at(3, -1, 2, -2, 1)}, "slots", ("-2 at 3", "-1, which writes nothing")),
    "a slot twice": ({"slots": at(3, -1, 2, -1, 3)}, "slots", ("3 at 0 and 4", "each slot once")),
    "check a str": ({"check": "yes"}, "check", ("'yes'", "True or False")),
}  # fmt: skip

IN_PLACE = {"k": K, "v": V, "k_cache": K_CACHE, "v_cache": V_CACHE, "slots": SLOTS}


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    named = {name: value for name, value in arguments.items() if name not in IN_PLACE}
    return Sample(in_place, named, written=(2, 3))


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    beside = (made({}), made({"check": True}))
    return {name: Illegal(made(given), argument, said, beside) for name, (given, argument, said) in WRONG.items()}
