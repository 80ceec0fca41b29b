"""A process that judges cases, so that a backend that crashes or hangs costs one case and not the run.

    python -m xattn_conformance.running

reads requests from stdin and writes replies to what was stdout. The vendor's code may print whatever it likes: its
stdout is this process's stderr, and its stdin is empty.
"""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch

from xattn_conformance.profiles.schema import ProfileError, parse
from xattn_conformance.running import canaries, environment, memory, reach, target
from xattn_conformance.running.dump import Dump
from xattn_conformance.running.judge import judge
from xattn_conformance.running.protocol import (
    Canaries,
    Caught,
    Judge,
    Judged,
    Numbered,
    Ready,
    Refused,
    Reply,
    Request,
    Start,
    decode_request,
    encode,
)
from xattn_conformance.running.target import Target, TargetError


def main() -> None:
    requests, replies = _own_channels()
    faulthandler.enable()
    process = os.getpid()
    first = decode_request(requests.readline())
    start = first.message
    assert isinstance(start, Start)
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    if start.memory is not None:
        memory.limit(start.memory)
    try:
        judged = target.make(start.backend, start.device, parse(start.profile), start.profile_file, start.soak)
    except (TargetError, ProfileError) as error:
        _say(replies, first.number, Refused(str(error)))
        return
    _say(
        replies,
        first.number,
        Ready(judged.provenance, environment.describe(judged), reach.declared(judged.backend, judged.kind)),
    )
    for line in requests:
        asked = decode_request(line)
        reply = _answer(asked.message, judged)
        if os.getpid() != process:
            # A child that the vendor's code forked came back out of the call: the answer is its parent's to give.
            os._exit(0)
        _say(replies, asked.number, reply)
        if isinstance(reply, Judged) and reply.ended:
            return


def _answer(request: Request, judged: Target) -> Reply:
    if isinstance(request, Canaries):
        return Caught(canaries.catch(request.names, request.dtype, judged))
    assert isinstance(request, Judge)
    dump = None if request.dump is None else Dump(Path(request.dump))
    result = judge(request.case, judged, dump)
    if result.status in ("PASS", "WAIVED") and not canaries.fails_zeros(judged):
        said = (
            "after the case this process no longer fails a kernel that answers zeros: nothing that passed in it counts"
        )
        result = msgspec.structs.replace(result, status="INVALID", message=said)
    return Judged(result, ended=result.status == "ERROR" and not _answers(judged.device))


def _answers(device: str) -> bool:
    """Whether the device still computes: after an illegal access, say, every later call of the process fails."""
    try:
        return bool((torch.ones(1, device=device) + 1).item() == 2)
    except RuntimeError:
        return False


def _own_channels() -> tuple[BinaryIO, BinaryIO]:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, replies


def _say(replies: BinaryIO, number: int, reply: Reply) -> None:
    replies.write(encode(Numbered(number, reply)) + b"\n")
    replies.flush()
