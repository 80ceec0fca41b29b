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

import torch

from xattn_conformance.profiles.schema import ProfileError, parse
from xattn_conformance.running import canaries, environment, target
from xattn_conformance.running.dump import Dump
from xattn_conformance.running.judge import judge
from xattn_conformance.running.protocol import (
    Canaries,
    Caught,
    Judge,
    Judged,
    Ready,
    Refused,
    Reply,
    Start,
    decode_request,
    encode,
)
from xattn_conformance.running.target import Target, TargetError


def main() -> None:
    requests, replies = _own_channels()
    faulthandler.enable()
    start = decode_request(requests.readline())
    assert isinstance(start, Start)
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    try:
        judged = target.make(start.backend, start.device, parse(start.profile), start.profile_file)
    except (TargetError, ProfileError) as error:
        _say(replies, Refused(str(error)))
        return
    _say(replies, Ready(judged.provenance, environment.describe(judged)))
    for line in requests:
        reply = _answer(line, judged)
        _say(replies, reply)
        if isinstance(reply, Judged) and reply.ended:
            return


def _answer(line: bytes, judged: Target) -> Reply:
    request = decode_request(line)
    if isinstance(request, Canaries):
        return Caught(canaries.catch(request.names, request.dtype, judged))
    assert isinstance(request, Judge)
    dump = None if request.dump is None else Dump(Path(request.dump))
    result = judge(request.case, judged, dump)
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


def _say(replies: BinaryIO, reply: Reply) -> None:
    replies.write(encode(reply) + b"\n")
    replies.flush()
