"""DTensors cut over batch rows or heads: each rank serves its part, forward and backward, with every feature."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed
from support import ROOT, execute


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_ranks_answer_as_one(tmp_path: Path) -> None:
    path = ":".join(str(ROOT / part) for part in (".", "plugins", "conformance"))
    script = ROOT / "tests/sharded_calls.py"
    said = execute([sys.executable, script, tmp_path / "ranks"], tmp_path, {"PYTHONPATH": path})
    assert "as one rank alone" in said
