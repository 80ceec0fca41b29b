"""The example of unmodified libraries, as far as they are dependencies of the tests."""

from __future__ import annotations

import pytest
import torch
from support import ROOT


@pytest.mark.parametrize("name", ["transformers", "sentence-transformers", "torch"])
def test_a_library_goes_through_the_door(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    import libraries

    with torch.no_grad():
        row, right = libraries.run(name, "reference")
    assert right, row
