"""The command that runs one case again."""

from __future__ import annotations

import shlex

from xattn_conformance.case import Case


def command(case: Case, backend: str, device: str) -> str:
    """A line for a shell. The profile is the backend's own; a run with --profile has to be repeated with it."""
    level = [] if case.level == "core" else ["--level", case.level]
    words = ["xattn-conformance", "run", "--backend", backend, "--device", device, *level, "--case", case.id]
    return shlex.join(words)
