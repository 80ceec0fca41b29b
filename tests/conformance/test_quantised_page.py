"""docs/quantised.md is what the kernels of this repository say."""

from __future__ import annotations

from support import ROOT
from xattn_elsewhere.quantised import page


def test_the_page_is_theirs() -> None:
    made = "python -m xattn_elsewhere.quantised > docs/quantised.md"
    assert (ROOT / "docs/quantised.md").read_text() == page(), made
