"""Which kernel computes, in one word that two processes can compare: a trainer and the engine that serves its model."""

from __future__ import annotations

import hashlib
import json

from xattn.dispatch.tables.environment import here


def fingerprint(backend: str, kernel: str, device: str) -> str | None:
    """The backend's name and a hash of the kernel's, the card, and the versions of torch, of the backend's plugin and
    of the packages it names. None for a device that this machine has not.

    Of two processes with the same one, the same calls run the same code. A kernel that splits its work by the call says
    how in its name.
    """
    environment = here(device)
    if environment is None:
        return None
    backend = backend.partition(".")[0]  # by whichever name it was asked for
    facts = [backend, kernel, environment.card, environment.versions, environment.packages[backend]]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=dict).encode()).hexdigest()
    return f"{backend}:{digest[:16]}"
