"""examples/serve.py serves what one-by-one generation gives, and says so."""

from __future__ import annotations

import subprocess
import sys

from support import ROOT


def test_served_tokens_are_those_of_one_by_one_generation() -> None:
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "--requests", "8", "--check", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stderr
    assert "3 pages left in use, by the prefix\n4 of them generated one by one: the same tokens" in done.stdout
