"""Strangers' backends for the tests of the runner: right, but for what a test adds."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from support import backend_source, stranger
from xattn_conformance.case import Case
from xattn_conformance.running import selection

PROFILE = 'schema = 1\nbackend = "{}"\nhardware = ["cpu"]\n[arithmetic]\nprobabilities = "float32"\n'

# Right by way of the reference backend. `before` and `after` surround the call.
_HONEST = """
def plan(self, request):
    from xattn.dispatch.registry import registry
    (inner,) = [each.plan(request) for each in registry().entries["reference"].kernels(request.op)]

    def run(q, k, v, **tensors):
        {before}
        found = inner(q, k, v, **tensors)
        {after}
        return found

    return run
"""


def honest(before: str = "pass", after: str = "pass", more: str = "") -> str:
    """Members of a backend's class. more: further ones."""
    return _HONEST.format(before=before, after=after) + textwrap.dedent(more)


def one(pattern: str) -> Case:
    """The smallest float32 case of a pattern that has something to compare."""
    cases = [case for case in selection.select("full", ["float32"], pattern) if selection.size(case) > 10_000]
    assert cases, pattern
    return min(cases, key=selection.size)


def install(folder: Path, name: str, body: str, profile: str = PROFILE) -> dict[str, str]:
    """Lay out a stranger's plugin and its profile; returns the environment in which other processes find it."""
    folder.mkdir(exist_ok=True)
    stranger(folder, name, backend_source(name, 0.0, body=body))
    if profile:
        (folder / f"{name}.profile.toml").write_text(profile.format(name))
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
