"""The example with real weights."""

from __future__ import annotations

import pytest
from support import ROOT


def test_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo shows: real weights, real text, one padded batch."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import minilm

    batch = minilm.tokenize(minilm.SENTENCES)
    eager, ours = (minilm.load(name) for name in ("eager", "xattn"))
    embeddings = minilm.embed(ours, batch)
    assert embeddings.shape == (36, 384)
    assert float((embeddings - minilm.embed(eager, batch)).abs().max()) <= minilm.TOLERANCE
    assert len(minilm.watch(ours, batch)) == 6
    assert not minilm.watch(eager, batch)
    assert all(j - i == 1 for _, i, j in minilm.closest(embeddings, 10))  # paraphrases are neighbours in the list
