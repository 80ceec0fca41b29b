"""Kernels with one wrong step each. What is wrong with them stands in `zoo.py`."""

from __future__ import annotations

from xattn_conformance.mutants.numbers import F32, to_dtype
from xattn_conformance.ops import rotation
from xattn_conformance.ops.apply_rotary.mutants.kernel import Kernel


class HalvesSwapped(Kernel):
    def rotated(self, x: F32, sin: F32) -> F32:
        first, second = rotation.places(self.cos.shape[-1], self.problem.interleaved)
        right = super().rotated(x, sin)
        out: F32 = right.copy()
        out[..., first], out[..., second] = right[..., second], right[..., first]
        return out


class RestLost(Kernel):
    def rotated(self, x: F32, sin: F32) -> F32:
        out = super().rotated(x, sin)
        out[..., 2 * self.cos.shape[-1] :] = 0
        return out


class QUnrotated(Kernel):
    def out(self, q: F32) -> F32:
        return q


class KUnrotated(Kernel):
    def out_k(self, k: F32) -> F32:
        return k


class SharedHeads(Kernel):
    """As by a loop over the fewer heads of both."""

    def rotated(self, x: F32, sin: F32) -> F32:
        out = super().rotated(x, sin)
        q, k = self.problem.q, self.problem.k
        shared = q.shape[2] if k is None else min(q.shape[2], k.shape[2])
        out[:, :, shared:] = x[:, :, shared:]
        return out


class InBfloat16(Kernel):
    def step(self, x: F32) -> F32:
        return to_dtype(x, "bfloat16")


class InDtype(Kernel):
    def step(self, x: F32) -> F32:
        return self.numbers.at("input", x)


class GradientForward(Kernel):
    def gradient(self, dout: F32) -> F32:
        return self.rotated(dout, self.sin)


class GradientUnrotated(Kernel):
    def gradient(self, dout: F32) -> F32:
        return dout


class GradientRestLost(Kernel):
    def gradient(self, dout: F32) -> F32:
        out = super().gradient(dout)
        out[..., 2 * self.cos.shape[-1] :] = 0
        return out
