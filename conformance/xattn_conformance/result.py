"""What a run leaves behind: checks, results of cases, and the report. The JSON of `Report` is the one source; JUnit,
HTML, comparisons and verification are derived from it."""

from __future__ import annotations

import gzip
import zlib
from typing import Any, Literal

import msgspec

from xattn_conformance.case import SUITES, Case
from xattn_conformance.levels import Level

# Version of the report's JSON.
SCHEMA = 1
# Version of the cases, goldens and limits: a claim names it ("attention Core 1.0").
SUITE = SUITES[-1]

Status = Literal["PASS", "FAIL", "WAIVED", "UNSUPPORTED", "ERROR", "INVALID"]

# The selection of a run of all cases; any other is of chosen cases.
EVERY = "*"

# How a result was obtained. Only the first is a statement about the vendor's hardware.
Provenance = Literal["hardware", "vendor code elsewhere", "stand-in"]


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One measured number against the most it may be. Where the rule has no tolerance, `value` counts violations and
    `limit` is 0.

    name:   "out.zmax", "lse.zmax", "out.dead", "repeat.bits", ...: what was compared, then the metric. A variation's
            comparison with the golden comes with its name in front: "strides:out.zmax".
    count:  how many independent samples the metric was taken over, which is what its limit depends on.
    waiver: id of the waiver that raised the limit from the suite's to `limit`.
    """

    name: str
    value: float | None  # None: not a finite number, which no limit admits
    limit: float
    count: float = 1.0
    waiver: str = ""

    @property
    def ok(self) -> bool:
        return self.value is not None and self.value <= self.limit


class Worst(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The worst element of a comparison. index: (batch, head, row, column) in the tensor `tensor`; for out and q rows
    are queries, for k and v keys. Numbers that are not finite are text ("nan")."""

    tensor: str
    index: tuple[int, int, int, int]
    got: float | str
    want: float | str
    sigma: float | str


class Heat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The error of out over seqlen_q x nheads (batch folded into heads), made small: each cell is the largest zrow in
    it, relative to its limit (1 is at the limit). rows: the first query of each line of cells."""

    rows: tuple[int, ...]
    heads: tuple[int, ...]
    cells: tuple[tuple[float | None, ...], ...]


class CaseResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What became of one case.

    kernel:    what the backend says that it runs.
    message:   one plain sentence for whatever is not PASS.
    detail:    a traceback, where there is one.
    left_out:  variations of the case that the backend declines, and the codes of its reasons: nothing is known about
               them. Before suite 1.2 the codes are in the message alone.
    reasons:   of an UNSUPPORTED case: what the backend declared, as `Reason.as_dict`.
    histogram: counts of |z| of out in bins of `HISTOGRAM_STEP` limits, the last bin open.
    inputs:    sha256 of the bits of the inputs.
    output:    sha256 of the bits of the outputs.
    reproduce: a command line.
    """

    id: str
    case: Case
    status: Status
    provenance: Provenance
    checks: tuple[Check, ...] = ()
    kernel: str = ""
    message: str = ""
    detail: str = ""
    left_out: dict[str, tuple[str, ...]] | tuple[str, ...] = {}
    reasons: tuple[dict[str, str], ...] = ()
    worst: Worst | None = None
    heat: Heat | None = None
    histogram: tuple[int, ...] = ()
    inputs: str = ""
    output: str = ""
    seconds: float = 0.0
    reproduce: str = ""


# Bins of a histogram, in units of the limit: 0 to 1 in twenty steps, and what is beyond.
HISTOGRAM_STEP = 0.05
HISTOGRAM_BINS = 21


class Canary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel that is known to be wrong, sent through the run's own comparison. It must be caught."""

    name: str
    case: str
    caught_by: str  # the check, or "" where nothing caught it: then the run is INVALID
    value: float | None
    limit: float


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole run of one backend on one device.

    levels:      the level that was run: all cases of it and of the levels below it.
    selection:   the case glob. Only a run of EVERY case is a claim.
    ops:         the ops that the backend has: the run is of their cases, and says nothing of another op.
    goldens:     sha256 of the golden manifest.
    invalid:     why nothing in this report counts; empty where it does.
    seed:        of the inputs of its cases; 0 is the published ones.
    fresh:       the seed of the cases that were run once more on inputs that nobody has seen; 0: none were.
    soak:        how many times more each case was called.
    declared:    by op, the features and gradients that the backend declares on the device ("grad_qkv").
    untested:    by op, those of them that no executed case of the run uses.
    environment: versions, device, commit and whether the tree was dirty, environment variables that matter.
    profile:     the profile's text, verbatim, with its waivers, and where it came from.
    """

    schema: int
    suite: str
    backend: str
    device: str
    level: Level
    ops: tuple[str, ...]
    dtypes: tuple[str, ...]
    selection: str
    started: str
    seconds: float
    provenance: Provenance
    goldens: str
    invalid: str
    environment: dict[str, Any]
    profile: str
    profile_source: str
    canaries: tuple[Canary, ...]
    cases: tuple[CaseResult, ...]
    seed: int = 0
    fresh: int = 0
    soak: int = 0
    declared: dict[str, tuple[str, ...]] = {}
    untested: dict[str, tuple[str, ...]] = {}

    def count(self, status: Status) -> int:
        return sum(result.status == status for result in self.cases)

    @property
    def executed(self) -> int:
        """Cases in which the backend computed something."""
        return sum(result.status in ("PASS", "FAIL", "WAIVED") for result in self.cases)

    @property
    def passed(self) -> bool:
        """Whether the run found nothing wrong: valid, something was executed, and every case passed, is waived, or was
        declined as declared."""
        bad = any(result.status in ("FAIL", "ERROR", "INVALID") for result in self.cases)
        return not self.invalid and self.executed > 0 and not bad


def encode(report: Report) -> bytes:
    """The report as JSON."""
    return msgspec.json.encode(report)


def decode(data: bytes) -> Report:
    """The inverse of `encode`, also for what gzip has packed. Raises ValueError with a plain message for anything that
    is not a whole report."""
    try:
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"not a whole conformance report: {error}") from error
    try:
        version = msgspec.json.decode(data).get("schema")
    except (msgspec.DecodeError, AttributeError) as error:
        raise ValueError(f"not a whole conformance report: {error}") from error
    if version != SCHEMA:
        raise ValueError(f"a report of schema {version}; this suite reads schema {SCHEMA}")
    try:
        return msgspec.json.decode(data, type=Report)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a whole conformance report: {error}") from error
