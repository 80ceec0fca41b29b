"""How much memory of the host a worker process may hold: a backend that leaks costs its case, and not the machine."""

from __future__ import annotations

import os
import resource
from pathlib import Path

# Of the machine's memory, the part that all workers together may hold.
_SHARE = 0.8
# Where a container's own limit stands, in its two versions.
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def limit(size: int) -> None:
    """Let this process hold so many bytes. Past it an allocation fails, which is an error of the case that made it."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, most))


def share(device: str, workers: int) -> int | None:
    """Bytes for each of several workers, by what the machine has. None on an accelerator, whose driver reserves more
    than it ever holds."""
    return int(_SHARE * _physical() / workers) if device.startswith("cpu") else None


def _physical() -> int:
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CONTAINER:
        if path.exists() and (text := path.read_text().strip()).isdecimal():
            found = min(found, int(text))
    return found
