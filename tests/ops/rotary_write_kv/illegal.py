"""Every way to call `rotary_write_kv` wrongly; of caches and slots some, which `write_kv` has all."""

from __future__ import annotations

from typing import Any

import torch
from ops.rotary_write_kv.samples import latents, tokens
from sample import Illegal, Sample

# 5 tokens, 4 query heads and 2 of 8, values of 6, 6 blocks of 4.
Q, K, V, COS, SIN, K_CACHE, V_CACHE, SLOTS = tokens([3, -1, 8, 0, 23], headdim_v=6)

# (the arguments, the one that is named, parts of the message)
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "q None": ({"q": None}, "q", ("got None", "a torch.Tensor")),
    "q padded": ({"q": Q[None]}, "q", ("shape (1, 5, 4, 8)", "(total_q, nheads, headdim)")),
    "q of fewer tokens": ({"q": Q[:4]}, "q", ("tokens 4", "5, the tokens of k")),
    "q of another headdim": ({"q": Q[..., :6].contiguous()}, "q", ("headdim 6", "8, the headdim of k")),
    "q of another dtype": ({"q": Q.half()}, "q", ("float16", "float32, the dtype of k")),
    "k None": ({"k": None}, "k", ("got None", "a torch.Tensor")),
    "v of fewer heads": ({"v": V[:, :1]}, "v", ("nheads_k 1", "2, the nheads_k of k")),
    "v None, v_cache not": ({"v": None}, "v", ("got None", "as v_cache is")),
    "cos None": ({"cos": None}, "cos", ("got None", "a torch.Tensor")),
    "cos of fewer tokens": ({"cos": COS[:4]}, "cos", ("tokens 4", "5, the tokens of k", "cos[positions]")),
    "cos of a batch": ({"cos": COS[None]}, "cos", ("shape (1, 5, 4)", "(5, rotary_dim / 2)", "cos[positions]")),
    "cos too wide": ({"cos": torch.ones(5, 5), "sin": torch.ones(5, 5)}, "cos", ("shape (5, 5)", "from 2 to 8")),
    "cos of another dtype": ({"cos": COS.half()}, "cos", ("float16", "float32", "cos.float()")),
    "cos that wants a gradient": ({"cos": COS.clone().requires_grad_()}, "cos", ("Detach it",)),
    "sin of another width": ({"sin": SIN[:, :3].contiguous()}, "sin", ("shape (5, 3)", "the shape of cos")),
    "k_cache of another headdim": ({"k_cache": K_CACHE[..., :7]}, "k_cache", ("headdim 7", "8, the headdim of k")),
    "int8 without a scale": ({"k_cache": K_CACHE.to(torch.int8)}, "k_scale", ("got None", "of the int8 cache")),
    "a slot twice": ({"slots": torch.tensor([3, -1, 2, -1, 3])}, "slots", ("3 at 0 and 4", "each slot once")),
    "interleaved a str": ({"interleaved": "yes"}, "interleaved", ("'yes'", "True or False")),
    "check a str": ({"check": "yes"}, "check", ("'yes'", "True or False")),
}  # fmt: skip

NAMES = ("q", "k", "v", "cos", "sin", "k_cache", "v_cache", "slots")
IN_PLACE = dict(zip(NAMES, (Q, K, V, COS, SIN, K_CACHE, V_CACHE, SLOTS), strict=True))


def made(arguments: dict[str, Any]) -> Sample:
    in_place = tuple(arguments.get(name, value) for name, value in IN_PLACE.items())
    named = {name: value for name, value in arguments.items() if name not in IN_PLACE}
    return Sample(in_place, named, written=(5, 6))


def illegal() -> dict[str, Illegal]:
    """By what is wrong."""
    beside = (made({}), made({"check": True, "interleaved": True}))
    found = {name: Illegal(made(given), argument, said, beside) for name, (given, argument, said) in WRONG.items()}
    q, k, *rest = latents([3, -1, 8, 0, 23])
    assert k is not None
    two = Sample((q, k.expand(-1, 2, -1), *rest), written=(5,))
    legal = Sample((q, k, *rest), written=(5,))
    found["latents of two heads"] = Illegal(two, "k", ("nheads_k 2", "a latent one"), (legal,))
    return found
