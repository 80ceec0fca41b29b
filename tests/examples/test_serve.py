"""examples/serve.py serves what one-by-one generation gives, and says so."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from plugins.sdpa.gpu.gpu_calls import needs_cuda
from support import ROOT, extended


def served(*options: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "--requests", "8", "--check", "4", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stderr
    assert "3 pages left in use, by the prefix\n" in done.stdout
    return done.stdout


def test_served_tokens_are_those_of_one_by_one_generation() -> None:
    said = served()
    assert "tokens/s on cpu, keys and values in float32\n4 of them generated one by one: the same tokens\n" in said


@pytest.mark.parametrize("dtype", extended("float16", "bfloat16"))
def test_in_16_bits_they_are_but_for_near_ties(dtype: str) -> None:
    assert f"on cpu, keys and values in {dtype}\n" in served("--dtype", dtype)


@pytest.mark.parametrize("storage", ["int8", *extended("fp8", "int4")])
def test_quantised_it_says_what_that_costs(storage: str) -> None:
    size = 0.31 if storage == "int4" else 0.56
    said = served("--kv", storage)
    assert f"on cpu, keys and values in {storage}\n" in said
    assert f"bytes, {size} of its 1,024 in 16 bits\n" in said
    found = re.search(r"the best one as in float32 in ([\d.]+)%, the logits apart by ([\d.]+)%", said)
    assert found
    best, apart = map(float, found.groups())
    # A cache that lost its scales, or whose pages were another's, gives other tokens altogether.
    assert best > 50
    assert 0 < apart < 30


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_decode_is_a_graph(dtype: str) -> None:
    said = served("--device", "cuda", "--dtype", dtype)
    assert f"on cuda, keys and values in {dtype} with decode as a CUDA graph\n" in said
    assert dtype != "float32" or "4 of them generated one by one: the same tokens\n" in said
