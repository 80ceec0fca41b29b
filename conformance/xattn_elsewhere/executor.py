"""What a profile's `executor` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xattn_conformance.ops.call import execute
from xattn_conformance.result import Provenance


@dataclass(frozen=True)
class Elsewhere:
    """Runs the public call in a process in which an emulation or a stand-in was installed as its module was loaded.

    about: what a report says of it, beside its provenance.
    """

    provenance: Provenance
    about: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, op: str, arguments: Mapping[str, Any], backend: str) -> Any:
        return execute(op, arguments, backend)
