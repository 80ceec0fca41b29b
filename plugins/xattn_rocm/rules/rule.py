"""What a rule is, and how its links are written."""

from __future__ import annotations

from dataclasses import dataclass

# ROCm/aiter of 2026-08-22, 46 commits after v0.1.20: the newest tree that the rules were checked against.
SNAPSHOT = "e4048607a535ace3a2b51ded31b1c8c2d45c0879"


@dataclass(frozen=True)
class Rule:
    """One defect of aiter, or one gap that its documentation does not tell of.

    backend:   whose calls it concerns: "aiter", "aiter-triton" or "both".
    versions:  the releases that have it, as a `packaging` specifier of >= and < alone; "" for every one from 0.1.7 on.
    link:      upstream's issue, pull request, or line of code at a commit.
    what:      what aiter does. guard: what xattn does about it.
    callable_yet: False where no call of xattn can meet it yet; `guard` then says what is missing.
    """

    name: str
    backend: str
    versions: str
    link: str
    what: str
    guard: str
    callable_yet: bool = True


def issue(number: int) -> str:
    return f"https://github.com/ROCm/aiter/issues/{number}"


def pull(number: int) -> str:
    return f"https://github.com/ROCm/aiter/pull/{number}"


def line(path: str, number: int, commit: str = SNAPSHOT) -> str:
    return f"https://github.com/ROCm/aiter/blob/{commit}/{path}#L{number}"
