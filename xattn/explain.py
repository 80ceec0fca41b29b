"""`explain`: which backend a call would get, which kernel it would run, and what stops every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xattn import override, plans
from xattn.arguments import check_values
from xattn.attention import Arguments, split
from xattn.errors import UnsupportedError
from xattn.override import Choice
from xattn.reasons import Reason
from xattn.registry import STRANGER, Entry, raised, registry
from xattn.request import Request
from xattn.selection import candidates, entry_reasons, select

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Candidate:
    """One backend's answer. `kernel` is empty where `reasons` is not; `asked` is False where the caller's choice of
    backend leaves it out."""

    name: str
    plugin: str
    asked: bool
    kernel: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Explanation:
    """What a call would do. `str()` of it is for people, `as_dict()` for machines.

    backend: the chosen one's name, or None where the call would raise UnsupportedError.
    kernel:  what it would run.
    candidates: every registered backend in the order of `auto`.
    notes:   faster backends that something keeps away, and plugins and backends with a failure.
    """

    request: Request
    choice: Choice
    backend: str | None
    kernel: str | None
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "request": str(self.request),
            "choice": self.choice,
            "backend": self.backend,
            "kernel": self.kernel,
            "candidates": [
                {**asdict(candidate), "reasons": [reason.as_dict() for reason in candidate.reasons]}
                for candidate in self.candidates
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [str(self.request)]
        lines.append(f"backend: {self.backend or 'none can serve it'}" + (f" ({self.kernel})" if self.kernel else ""))
        elsewhere = [each.name for each in self.candidates if [r.code for r in each.reasons] == ["device"]]
        for candidate in self.candidates:
            if candidate.name in elsewhere:
                continue
            if candidate.reasons:
                lines.append(f"{candidate.name} cannot, because:")
                lines += [f"    {reason}" for reason in candidate.reasons]
            elif candidate.name != self.backend:
                not_asked = "" if candidate.asked else ", not asked"
                lines.append(f"{candidate.name} could ({candidate.kernel}){not_asked}")
        lines += [f"not for this device: {', '.join(elsewhere)}"] if elsewhere else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def explain(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **arguments: Unpack[Arguments]
) -> Explanation:
    """What `attention` with the same arguments would do, without doing it. Raises only InvalidArgumentError and
    UnknownBackendError."""
    options, tensors, backend = split(return_lse=return_lse, **arguments)
    check_values(k, tensors)
    return explain_request(plans.described(q, k, v, options, tensors), override.chosen(backend))


def explain_request(request: Request, choice: Choice = "auto") -> Explanation:
    """`explain` for a request that was made by hand: another device's, say."""
    allowed = candidates(choice)
    found: list[Candidate] = []
    failures: list[str] = []
    for entry in registry().ordered(request):
        reasons = tuple(entry_reasons(entry, request))
        kernel = "" if reasons else _kernel(entry, request, failures)
        asked = allowed is None or entry.name in allowed
        found.append(Candidate(entry.name, entry.plugin, asked, kernel, reasons))
    try:
        backend: str | None = select(request, choice, warn=False).name
    except UnsupportedError:
        backend = None
    by_name = {candidate.name: candidate for candidate in found}
    return Explanation(
        request,
        choice,
        backend,
        by_name[backend].kernel if backend is not None else None,
        tuple(found),
        (*_kept_away(backend, by_name), *failures, *registry().problems()),
    )


def _kernel(entry: Entry, request: Request, failures: list[str]) -> str:
    # A stranger's code, and no part of a call: a backend that cannot name its kernel can still serve.
    try:
        return entry.backend.kernel(request)
    except STRANGER as error:
        failures.append(f"{entry.name}: kernel() raised {raised(error)}")
        return entry.name


def _kept_away(backend: str | None, found: Mapping[str, Candidate]) -> list[str]:
    """Backends that `auto` would have preferred to the chosen one, each with what keeps it away."""
    notes = []
    for name, candidate in found.items():
        if name == backend:
            break
        codes = {reason.code for reason in candidate.reasons}
        if not codes and not candidate.asked and backend is None:
            notes.append(f"{name} could serve this call, but the choice of backend leaves it out")
        elif not codes and not candidate.asked:
            notes.append(f"{name} ranks higher and could serve this call, but the choice of backend leaves it out")
        elif codes == {"disabled"}:
            notes.append(f"{name} ranks higher and could serve this call, but is disabled {candidate.reasons[0].got}")
        elif codes == {"broken"}:
            notes.append(f"{name} may rank higher, but is broken: {candidate.reasons[0].got}")
    return notes
