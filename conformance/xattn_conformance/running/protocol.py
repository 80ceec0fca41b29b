"""What the runner and its worker processes say to each other: one JSON document a line.

Requests are numbered, and a reply carries the number of its request: an answer that was meant for another is told from
this one's.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from xattn_conformance.case import Case
from xattn_conformance.result import Canary, CaseResult, Provenance

M = TypeVar("M")


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker. profile: its text. threads: of torch on the CPU; None is torch's own number.
    profile_file: where the text came from, if that is not the backend's own profile.
    memory: bytes that the process may hold on the host; None is no limit.
    soak: how many times more each case is called."""

    backend: str
    device: str
    profile: str
    threads: int | None
    profile_file: str = ""
    memory: int | None = None
    soak: int = 0


class Judge(msgspec.Struct, frozen=True, tag=True):
    """dump: a file for the case's tensors."""

    case: Case
    dump: str | None = None


class Canaries(msgspec.Struct, frozen=True, tag=True):
    """Send the kernels of these names, known to be wrong, through the comparison."""

    names: tuple[str, ...]
    dtype: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """declared: by op, what the backend declares on the device."""

    provenance: Provenance
    environment: dict[str, Any]
    declared: dict[str, tuple[str, ...]]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot do what `Start` says."""

    message: str


class Judged(msgspec.Struct, frozen=True, tag=True):
    """ended: the worker leaves after this case, because its device no longer answers."""

    result: CaseResult
    ended: bool = False


class Caught(msgspec.Struct, frozen=True, tag=True):
    canaries: tuple[Canary, ...]


Request = Start | Judge | Canaries
Reply = Ready | Refused | Judged | Caught


class Numbered(msgspec.Struct, Generic[M], frozen=True):
    """A request or the reply to it."""

    number: int
    message: M


encode = msgspec.json.encode
decode_request = msgspec.json.Decoder(Numbered[Request]).decode
decode_reply = msgspec.json.Decoder(Numbered[Reply]).decode
