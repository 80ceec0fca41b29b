"""The file that a backend ships: what its kernels' arithmetic is, what bits it promises, and its waivers.

    schema = 1
    backend = "acme"
    hardware = ["cuda"]

    [arithmetic]              # what differs from a tiled kernel: see `Arithmetic`
    scaled_q = true

    [[arithmetic_on]]         # instead of what stands above, on this device and in these dtypes
    device = "cuda"
    dtypes = ["float32"]
    products = "tf32"

    [bitwise]
    batch = true

    [bitwise_on.cuda]         # instead of what stands above, on this device
    repeat = false
    poison = false

    [[waiver]]                # see `Waiver`
    id = "XW-1"
    ...

There is no key for a tolerance, and a key that is not known is an error at every level.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from xattn_conformance.case import DTYPES
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic

# A waiver ends after so many days, and admits so much more than was observed.
WAIVER_DAYS = 90
WAIVER_SLACK = 1.25

Text = Annotated[str, msgspec.Meta(min_length=1, pattern=r"\S")]
Positive = Annotated[float, msgspec.Meta(gt=0)]

T = TypeVar("T")


class ProfileError(ValueError):
    """A profile that is not accepted: every reason, a line each."""


class Bitwise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which further calls give the same bits as the first. Where nothing is promised, their results are compared with
    the golden instead.

    repeat:  the same call again. Without it there is no promise to make about any other.
    poison:  the same call with other values where no query may look; the contract lets them reach nothing.
    batch:   each batch row called alone. Not by default: kernels pick tiles and splits by the size of the grid.
    strides: the same values in another memory layout. Not by default: a kernel may serve another layout another way.
    padding: more keys, past seqlens_k. Not by default: tiles and splits follow the size of the tensor.
    """

    repeat: bool = True
    poison: bool = True
    batch: bool = False
    strides: bool = False
    padding: bool = False

    def __post_init__(self) -> None:
        promised = [name for name in ("poison", "batch", "strides", "padding") if getattr(self, name)]
        if promised and not self.repeat:
            raise ValueError(f"repeat = false leaves no bits to promise: say {promised[0]} = false too")


class Override(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An [[arithmetic_on]], laid over [arithmetic]: what holds on one device in some dtypes."""

    device: Text
    dtypes: Annotated[tuple[Literal["float32", "float16", "bfloat16"], ...], msgspec.Meta(min_length=1)]
    arithmetic: Arithmetic


class Waiver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leave to be wrong, for a while, in some cases: they run, and are reported as WAIVED, never as PASS.

    id:       "XW-1"; stands beside every waived case of a report.
    cases:    exact ids of cases.
    check:    the one check whose limit is raised: "out.zrow".
    observed: the largest value measured. limit: the most that is let pass, at most 1.25 times that.
    device:   where: "cpu", "cuda", ... kernel: which version was measured.
    effect:   what is wrong, in a sentence. upstream: https address of the issue.
    filed, expires: at most 90 days apart.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]+(-[A-Za-z0-9]+)*$")]
    cases: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    check: Text
    observed: Positive
    limit: Positive
    device: Text
    kernel: Text
    effect: Text
    upstream: str
    filed: datetime.date
    expires: datetime.date
    owner: Text

    def __post_init__(self) -> None:
        if not math.isfinite(self.observed) or not math.isfinite(self.limit):
            raise ValueError("observed and limit are finite numbers")
        if not self.observed <= self.limit <= WAIVER_SLACK * self.observed:
            most = f"{WAIVER_SLACK} times the observed {self.observed:g}"
            raise ValueError(f"limit = {self.limit:g}: from the observed value to {most}")
        if not re.fullmatch(r"https://[^/\s]+\.[^/\s]+/\S*\d\S*", self.upstream):
            raise ValueError(f"upstream = {self.upstream!r}: the https address of an issue, with its number")
        if not self.filed < self.expires <= self.filed + datetime.timedelta(days=WAIVER_DAYS):
            raise ValueError(f"expires = {self.expires}: after filed = {self.filed}, by at most {WAIVER_DAYS} days")
        for case in self.cases:
            if set(case) & set("*?[]{}!"):
                raise ValueError(f"{case!r} is a pattern: a waiver names its cases one by one")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """schema: of this file.
    backend:       its name in xattn.
    hardware:      device kinds on which a run is a run on the vendor's hardware, as `Request.device` ("cpu", "cuda").
    executor:      "package.module:attribute" that runs a case where the backend cannot run eagerly; empty: eagerly.
    arithmetic:    where its kernels round.
    arithmetic_on: where a device or dtype differs.
    bitwise:       the bits that it promises. bitwise_on: instead, by device.
    waiver:        its waivers.
    """

    schema: Literal[1]
    backend: Text
    hardware: tuple[Text, ...]
    executor: Annotated[str, msgspec.Meta(pattern=r"^([\w.]+:[\w.]+)?$")] = ""
    arithmetic: Arithmetic = CANONICAL
    arithmetic_on: tuple[Override, ...] = ()
    bitwise: Bitwise = Bitwise()
    bitwise_on: dict[Text, Bitwise] = {}
    waiver: tuple[Waiver, ...] = ()

    def __post_init__(self) -> None:
        for what, names in (
            ("waiver id", [waiver.id for waiver in self.waiver]),
            ("arithmetic_on for", [f"{on.device} {dtype}" for on in self.arithmetic_on for dtype in on.dtypes]),
            ("waiver for", [f"{w.check} of {case} on {w.device}" for w in self.waiver for case in w.cases]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"twice the same {what} {twice[0]}")

    def arithmetic_for(self, device: str, dtype: str) -> Arithmetic:
        """The arithmetic on a device ("cpu") in a dtype ("bfloat16")."""
        if dtype not in DTYPES:
            raise ValueError(f"no dtype {dtype!r} in the suite: {', '.join(DTYPES)}")
        for on in self.arithmetic_on:
            if on.device == device and dtype in on.dtypes:
                return on.arithmetic
        return self.arithmetic

    def bitwise_for(self, device: str) -> Bitwise:
        """The bits promised on a device ("cpu")."""
        return self.bitwise_on.get(device, self.bitwise)


def parse(text: str) -> Profile:
    """The profile in a file's text. Raises ProfileError for what the text alone shows to be wrong."""
    try:
        raw = msgspec.toml.decode(text)
        base = raw.get("arithmetic", {})
        # Checked by itself, so that its errors are not blamed on what is laid over it.
        _convert(base, Arithmetic, "arithmetic")
        if isinstance(overrides := raw.get("arithmetic_on"), list):
            raw["arithmetic_on"] = [_laid_over(base, on, f"arithmetic_on[{i}]") for i, on in enumerate(overrides)]
        return _convert(raw, Profile, "profile")
    except msgspec.DecodeError as error:
        raise ProfileError(f"no TOML: {error}") from error


def _laid_over(base: dict[str, Any], on: Any, where: str) -> Any:
    if not isinstance(on, dict):
        return on  # an error that Profile names
    fields = {name: value for name, value in on.items() if name not in ("device", "dtypes")}
    # Not by way of Override's own field: in the file there is no table below [[arithmetic_on]].
    arithmetic = _convert({**base, **fields}, Arithmetic, where)
    return {**{name: on[name] for name in ("device", "dtypes") if name in on}, "arithmetic": arithmetic}


def _convert(raw: Any, into: type[T], where: str) -> T:
    try:
        return msgspec.convert(raw, into)
    except msgspec.ValidationError as error:
        hint = ""
        if "unknown field" in str(error):
            points = ", ".join(Arithmetic.__struct_fields__)
            hint = f". Tolerances are not declared: they follow from the arithmetic, which is ({points})"
        raise ProfileError(f"{where}: {error}{hint}") from error
