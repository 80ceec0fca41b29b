"""The command that runs one case again."""

from __future__ import annotations

import shlex

from xattn_conformance.case import Case


def command(case: Case, backend: str, device: str, profile_file: str = "", soak: int = 0) -> str:
    """A line for a shell. profile_file, soak: what the run was given with --profile and --soak."""
    level = [] if case.level == "core" else ["--level", case.level]
    words = ["xattn-conformance", "run", "--backend", backend, "--device", device, *level]
    words += ["--profile", profile_file] if profile_file else []
    words += ["--seed", str(case.draw)] if case.draw else []
    words += ["--soak", str(soak)] if soak else []
    return shlex.join([*words, "--case", case.published.id])
