"""A conformance case: data, not code. What to call, on which inputs, and what besides the answer is looked at."""

from __future__ import annotations

import hashlib
from math import prod
from typing import Any

import msgspec

from xattn_conformance.levels import Level

# Versions of the suite, of its cases, goldens and limits. A later one of the same first number adds cases and changes
# none, so a report of an earlier one is still held to what there was.
SUITES = ("1.0", "1.1", "1.2", "1.3", "1.4")

# The dtypes in which every case is run, by torch's names.
DTYPES = ("float32", "float16", "bfloat16")


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One call and the inputs it is made on. Its id says all of it that tells it from other cases.

    op:         "attention", ...: a key of `xattn_conformance.ops.registry.OPS`.
    title:      the options in words, as they stand in the id: "causal+window=15:0+sinks=log"; "plain" for none.
    level:      the lowest level that has the case.
    dtype:      of q, k and v, torch's name.
    family:     which inputs: a name of the op's input families.
    shape:      sizes by name, in the order in which the id shows them; for attention batch, seqlen_q, seqlen_k,
                nheads, nheads_k, headdim, headdim_v.
    options:    the op's options; a tensor is given by the name of the recipe that makes it ("sinks": "log").
    grads:      the gradients that are asked for: names out of xattn's GRADS. Empty: forward only, under no_grad.
    variations: further calls that must give the same bits or, where the backend does not promise the bits, an answer
                within the same limits: "repeat", "batch", "strides", "padding", "poison", "thread", ...
    features:   what a table of results is grouped by: "causal", "window", "gqa", ...
    since:      the version of the suite that it came with.
    draw:       which draw of the inputs: 0 is the published one, any other the seed of a run.
    """

    op: str
    title: str
    level: Level
    dtype: str
    family: str
    shape: dict[str, int]
    options: dict[str, Any] = {}
    grads: tuple[str, ...] = ()
    variations: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    since: str = SUITES[0]
    draw: int = 0

    @property
    def id(self) -> str:
        """ "attention/causal+sinks=log/bfloat16/b2-q17-k129-h4-g2-d64-v64/needle"; gradients in front of the title:
        "attention/grad.qkv.lse:causal/..."; another draw at the end: "@7"."""
        return f"{self.op}/{self._what}/{self.dtype}/{self._sizes}/{self.family}{self._draw}"

    @property
    def published(self) -> Case:
        """The case as the suite lists it, on its published inputs."""
        return msgspec.structs.replace(self, draw=0) if self.draw else self

    @property
    def seed(self) -> int:
        """64 bits that key the input generator; the same in every dtype."""
        text = f"{self.op}/{self._what}/{self._sizes}/{self.family}{self._draw}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    @property
    def _what(self) -> str:
        return f"grad.{'.'.join(self.grads)}:{self.title}" if self.grads else self.title

    @property
    def _draw(self) -> str:
        return f"@{self.draw}" if self.draw else ""

    @property
    def _sizes(self) -> str:
        return "-".join(f"{SHORT[name]}{size}" for name, size in self.shape.items())


def scores(case: Case) -> int:
    """What the work of a case grows with, beside the size of a head: of attention, the number of scores."""
    return prod(size for name, size in case.shape.items() if name not in ("nheads_k", "headdim", "headdim_v"))


# How the id abbreviates the names of sizes.
SHORT = {
    "batch": "b",
    "seqlen_q": "q",
    "seqlen_k": "k",
    "nheads": "h",
    "nheads_k": "g",
    "headdim": "d",
    "headdim_v": "v",
}
