"""What a rule is, and how its links are written."""

from __future__ import annotations

from dataclasses import dataclass

# Dao-AILab/flash-attention of 2026-08-15: the tree that the rules of `fa3` were read in, and run from.
FLASH = "0251105a2fb19d2957484b7f023cd8c115286ced"


@dataclass(frozen=True)
class Rule:
    """One defect of a vendor's kernels, or one gap that their documentation does not tell of.

    link: upstream's issue, or a line of code at a commit.  what: what they do.  guard: what xattn does about it.
    callable_yet: False where no call of xattn can meet it yet; `guard` then says what is missing.
    """

    name: str
    backend: str
    link: str
    what: str
    guard: str
    callable_yet: bool = True


def issue(repository: str, number: int) -> str:
    return f"https://github.com/{repository}/issues/{number}"


def flash(path: str, number: int) -> str:
    """A line of FlashAttention-3's source."""
    return f"https://github.com/Dao-AILab/flash-attention/blob/{FLASH}/hopper/{path}#L{number}"
