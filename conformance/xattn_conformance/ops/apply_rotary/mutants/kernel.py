"""Right kernels of apply_rotary, in float32. A wrong one overrides one method."""

from __future__ import annotations

import numpy as np

from xattn_conformance.array import Array
from xattn_conformance.mutants.mutant import Results
from xattn_conformance.mutants.numbers import F32, Numbers
from xattn_conformance.ops import rotation
from xattn_conformance.ops.apply_rotary.noise import as_heads
from xattn_conformance.ops.apply_rotary.problem import Rotary
from xattn_conformance.tolerance.arithmetic import Arithmetic


class Kernel:
    """Every product and every sum in float32, and one rounding to the dtype."""

    def __init__(self, problem: Rotary, arithmetic: Arithmetic) -> None:
        self.problem = problem
        self.numbers = Numbers(arithmetic, problem.dtype)
        self.cos, self.sin = problem.cos.astype(np.float32), problem.sin.astype(np.float32)

    def run(self) -> Results:
        given = self.problem
        found = {"out": self.out(_single(given.q))}
        if given.k is not None:
            found["out_k"] = self.out_k(_single(given.k))
        for name, dout in (("dq", given.dout), ("dk", given.dout_k)):
            if dout is not None:
                found[name] = self.gradient(_single(dout))
        return {name: as_heads(self.numbers.at("input", result)) for name, result in found.items()}

    def out(self, q: F32) -> F32:
        return self.rotated(q, self.sin)

    def out_k(self, k: F32) -> F32:
        return self.rotated(k, self.sin)

    def gradient(self, dout: F32) -> F32:
        """The rotation back."""
        return self.rotated(dout, -self.sin)

    def rotated(self, x: F32, sin: F32) -> F32:
        first, second = rotation.places(self.cos.shape[-1], self.problem.interleaved)
        one, other = self.step(x[..., first]), self.step(x[..., second])
        c, s = self.step(self.cos)[..., None, :], self.step(sin)[..., None, :]
        out: F32 = x.copy()
        out[..., first] = self.step(self.step(one * c) - self.step(other * s))
        out[..., second] = self.step(self.step(other * c) + self.step(one * s))
        return out

    def step(self, x: F32) -> F32:
        """What is read, or was computed in one step, as it is kept."""
        return x


class Fused(Kernel):
    """Both products and their sum with one rounding, as by fused instructions at their best."""

    def rotated(self, x: F32, sin: F32) -> F32:
        wide, c, s = (each.astype(np.float64) for each in (x, self.cos, sin))
        return rotation.rotated(wide, c, s, self.problem.interleaved).astype(np.float32)


def _single(x: Array) -> F32:
    return x.astype(np.float32)
