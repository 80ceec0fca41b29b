"""What the runner and its worker processes say to each other: one JSON document a line."""

from __future__ import annotations

from typing import Any

import msgspec

from xattn_conformance.case import Case
from xattn_conformance.result import Canary, CaseResult, Provenance


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker. profile: its text. threads: of torch on the CPU; None is torch's own number.
    profile_file: where the text came from, if that is not the backend's own profile."""

    backend: str
    device: str
    profile: str
    threads: int | None
    profile_file: str = ""


class Judge(msgspec.Struct, frozen=True, tag=True):
    """dump: a file for the case's tensors."""

    case: Case
    dump: str | None = None


class Canaries(msgspec.Struct, frozen=True, tag=True):
    """Send the kernels of these names, known to be wrong, through the comparison."""

    names: tuple[str, ...]
    dtype: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    provenance: Provenance
    environment: dict[str, Any]


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

encode = msgspec.json.encode
decode_request = msgspec.json.Decoder(Request).decode
decode_reply = msgspec.json.Decoder(Reply).decode
