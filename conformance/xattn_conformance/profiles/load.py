"""From a backend's name to its profile: found beside its class, checked, and tried on wrong kernels."""

from __future__ import annotations

import datetime
import importlib.resources
import sys
from dataclasses import dataclass
from pathlib import Path

from xattn import Backend, UnknownBackendError
from xattn.dispatch.registry import registry
from xattn_conformance.case import DTYPES
from xattn_conformance.ops.registry import OPS
from xattn_conformance.profiles import known
from xattn_conformance.profiles.admission import admit, believes
from xattn_conformance.profiles.schema import Profile, ProfileError, parse

# Profiles of runs elsewhere, by name: an emulation's or a stand-in's executor, and the arithmetic of that place.
_SHIPPED = importlib.resources.files("xattn_conformance.profiles") / "shipped"


@dataclass(frozen=True)
class Loaded:
    """A profile, its text verbatim, and where that came from."""

    profile: Profile
    text: str
    source: str


def load(
    backend: str, file: Path | None = None, *, admitted: bool = True, today: datetime.date | None = None
) -> Loaded:
    """The backend's profile, or `file` in its place.

    admitted: whether it is tried on wrong kernels, which takes seconds. What it lets pass is no claim otherwise.

    Raises ProfileError with every reason where it is not accepted, UnknownBackendError. A waiver that has expired is
    none: it fails its cases (see `waivers.settle`), and the rest of the run goes on.
    """
    text, source = find(backend, file)
    try:
        profile = parse(text)
        registered = _registered(backend)
        devices = _devices(registered)
        found = problems(profile, backend, devices, today or datetime.datetime.now(datetime.timezone.utc).date())
        if admitted:
            served, ops = devices | _named(profile), {kernel.op for kernel in registered.kernels}
            found = found or admit(profile, served, DTYPES, ops) or believes(profile, min(served), DTYPES, ops & {*OPS})
        if found:
            raise ProfileError("\n".join(found))
    except ProfileError as error:
        raise ProfileError(f"the profile of {backend} ({source}) is refused\n{error}") from error
    return Loaded(profile, text, source)


def find(backend: str, file: Path | None = None) -> tuple[str, str]:
    """(text, source) of the profile `<backend>.profile.toml` beside the backend's class: in its package, or next to a
    module that is in none. A backend that ships none is held to the canonical arithmetic, on no hardware.

    file: taken in its place, or the name of one that ships with the suite."""
    if file is not None:
        shipped = _SHIPPED / f"{file}.toml"
        if not file.exists() and shipped.is_file():
            return shipped.read_text(encoding="utf-8"), f"{file}, which ships with the suite"
        try:
            return file.read_text(encoding="utf-8"), f"{file.name}, given in place of the backend's own"
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{file} cannot be read: {error}") from error
    module = sys.modules[type(_registered(backend)).__module__]
    name = f"{whole(backend)}.profile.toml"
    if module.__package__:
        beside = importlib.resources.files(module.__package__) / name
    else:
        beside = Path(module.__file__ or "").with_name(name)
    if beside.is_file():
        return beside.read_text(encoding="utf-8"), f"{module.__package__ or module.__name__}: {name}"
    text = f'schema = 1\nbackend = "{whole(backend)}"\nhardware = []\n'
    return text, f"none: {module.__name__} ships no {name}, so the canonical arithmetic holds, and no hardware is named"


def problems(profile: Profile, backend: str, devices: frozenset[str], today: datetime.date) -> list[str]:
    """What is wrong with a profile beyond its text, a line each. devices: what the backend serves; "any" is all."""
    found = []
    if profile.backend != whole(backend):
        found.append(f'backend = "{profile.backend}", but it is the profile of "{backend}"')
    if "any" not in devices and (unserved := sorted(_named(profile) - devices)):
        served = ", ".join(sorted(devices))
        found.append(f"names the device {unserved[0]!r}, but the backend declares: {served}")
    for waiver in profile.waiver:
        if waiver.filed > today:
            found.append(f"waiver {waiver.id}: filed on {waiver.filed}, which is yet to come (today is {today})")
        for case in waiver.cases:
            if case not in known.cases():
                found.append(f"waiver {waiver.id}: the suite has no case {case!r}")
                continue
            checks = known.checks(case, profile.arithmetic_for(waiver.device, known.cases()[case].dtype))
            if waiver.check not in checks:
                there = ", ".join(sorted(checks))
                found.append(f"waiver {waiver.id}: {case} has no check {waiver.check!r}, only {there}")
    return found


def whole(backend: str) -> str:
    """The backend of a name that may be one kernel's of it, as "acme.fast": such a kernel has its backend's profile."""
    return backend.partition(".")[0]


def _registered(backend: str) -> Backend:
    if registry().names(backend) != [backend]:
        raise UnknownBackendError(registry().unknown(backend))
    return registry().entry(backend).backend


def _devices(backend: Backend) -> frozenset[str]:
    return frozenset(block.device for kernel in backend.kernels for block in kernel.capabilities)


def _named(profile: Profile) -> frozenset[str]:
    """Every device that the profile says something of."""
    devices = [*(on.device for on in profile.arithmetic_on), *(waiver.device for waiver in profile.waiver)]
    return frozenset([*profile.hardware, *profile.bitwise_on, *devices])
