"""A fingerprint says of two processes whether the same call runs the same code there."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import torch
from support import Load, backend_source, qkv, run_python, stranger

import xattn
from xattn.testing import fresh

CODE = """
import torch, xattn
q = torch.randn(1, 8, 2, 16)
print(xattn.explain(q, q, q).fingerprint(), xattn.plan(q, q, q, causal=True).fingerprint())
"""


def test_it_is_the_same_in_another_process_and_in_a_plan(tmp_path: Path) -> None:
    first, second = (run_python(CODE, tmp_path).split() for _ in range(2))
    q, k, v = qkv()
    here = xattn.explain(q, k, v).fingerprint()
    assert first == second
    assert re.fullmatch(r"sdpa:[0-9a-f]{16}", str(here))
    assert xattn.plan(q, k, v).fingerprint() == here == first[0]


def test_sizes_do_not_change_it_and_the_backend_the_kernel_and_the_op_do() -> None:
    q, k, v = qkv()
    one = xattn.explain(q, k, v).fingerprint()
    assert xattn.explain(q[:, :3], k, v).fingerprint() == one
    others = {
        xattn.explain(q, k, v, backend="reference").fingerprint(),
        xattn.explain(q, k, v, softcap=2.0).fingerprint(),  # another kernel of sdpa
        xattn.explain(xattn.apply_rotary, q, None, torch.ones(q.shape[1], 4), torch.ones(q.shape[1], 4)).fingerprint(),
    }
    assert len(others | {one}) == 4


def test_another_version_of_the_plugin_is_another(strangers: Path, load: Load) -> None:
    points = stranger(strangers, "acme", backend_source("acme", 1))
    metadata = strangers / "acme-1.0.dist-info" / "METADATA"
    found = []
    for version in ("1.0", "1.1", "1.0"):
        metadata.write_text(f"Metadata-Version: 2.1\nName: acme\nVersion: {version}\n")
        with fresh([*entry_points(group="xattn"), *points]):
            q, k, v = qkv()
            found.append(xattn.explain(q, k, v, backend="acme").fingerprint())
    assert found[0] == found[2] != found[1]


def test_what_nothing_serves_has_none() -> None:
    q, k, v = qkv()
    assert xattn.explain(q, k, v, backend="nki").fingerprint() is None
