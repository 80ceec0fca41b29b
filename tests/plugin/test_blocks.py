"""Which capability block of a kernel counts."""

from __future__ import annotations

from typing import Any

import torch

from xattn import AttentionKernel, AttentionRequest, Capabilities


def test_of_several_blocks_of_a_device_the_one_with_the_arch_counts() -> None:
    def block(archs: set[str], priority: int) -> Capabilities[Any]:
        dtypes, features = frozenset({torch.float32}), frozenset({"causal"})
        return Capabilities(
            "acme", dtypes, features, "on paper", archs=frozenset(archs), priority={"default": priority}
        )

    class Acme(AttentionKernel):
        capabilities = (block({"a1", "a2"}, 80), block({"a3"}, 40))

        def plan(self, request: AttentionRequest) -> Any:
            raise NotImplementedError

    def asked(arch: str | None) -> AttentionRequest:
        sizes: dict[str, Any] = {"batch": 1, "seqlen_q": 4, "seqlen_k": 4, "headdim": 8, "headdim_v": 8}
        return AttentionRequest(device="acme", dtype=torch.float32, arch=arch, nheads=2, nheads_k=2, **sizes)

    found = {arch: Acme().block(asked(arch)) for arch in ("a2", "a3", "a4", None)}
    assert [block.priority["default"] for block in found.values() if block] == [80, 40, 80, 80]
    assert [len(Acme().reasons(asked(arch))) for arch in found] == [0, 0, 1, 1]
