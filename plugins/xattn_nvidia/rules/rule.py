"""What a rule is, and how its links are written."""

from __future__ import annotations

from dataclasses import dataclass

# Dao-AILab/flash-attention of 2026-08-15: the tree that the rules of `fa3` and `fa4` were read in.
FLASH = "0251105a2fb19d2957484b7f023cd8c115286ced"
# NVIDIA/cudnn-frontend of 2026-05-08, in which the limits of `cudnn` were read.
CUDNN = "3929da2ef4c1dba1bb8acb68727b9134f26f40c0"


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


def pull(repository: str, number: int) -> str:
    return f"https://github.com/{repository}/pull/{number}"


def flash(path: str, number: int, folder: str = "hopper") -> str:
    """A line of FlashAttention-3's source, or of another folder of its repository."""
    return f"https://github.com/Dao-AILab/flash-attention/blob/{FLASH}/{folder}/{path}#L{number}"


def cute(path: str, number: int) -> str:
    """A line of FlashAttention-4's source."""
    return flash(path, number, "flash_attn/cute")


def cudnn(number: int) -> str:
    """A line of what cuDNN's frontend says is supported."""
    path = "include/cudnn_frontend/node/sdpa_support_surface.h"
    return f"https://github.com/NVIDIA/cudnn-frontend/blob/{CUDNN}/{path}#L{number}"
