"""`explain`: which backend a call would get, which kernel it would run, and what stops every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from xattn.dispatch.choice import Choice, Wish, allowed, chosen
from xattn.dispatch.failures import is_plugins, raised
from xattn.dispatch.registry import Entry, registry
from xattn.dispatch.selection import BUILD, backend_reasons, select
from xattn.errors import UnsupportedError
from xattn.plan import described
from xattn.plugin.backend import Kernel
from xattn.plugin.reasons import Reason
from xattn.plugin.request import Request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from xattn.dispatch.tables.telling import Measurement
    from xattn.ops.attention.call import Arguments


@dataclass(frozen=True)
class Candidate:
    """One backend's answer. `kernel` is empty where `reasons` is not; `asked` is False where the caller's choice of
    backend leaves it out.

    p50_us:  the median time of such calls, in microseconds, where a table has it.
    unbuilt: what has to be compiled before its first call, because of which "auto" passes over it.
    """

    name: str
    plugin: str
    asked: bool
    kernel: str
    reasons: tuple[Reason, ...]
    p50_us: float | None = None
    unbuilt: str | None = None

    @property
    def time(self) -> str:
        """`p50_us` as text, empty where it is None."""
        return "" if self.p50_us is None else f"{self.p50_us:,.{0 if self.p50_us >= 1000 else 1}f} us"


@dataclass(frozen=True)
class Explanation:
    """What a call would do. `str()` of it is for people, `as_dict()` for machines.

    backend: the chosen one's name, or None where the call would raise UnsupportedError.
    kernel:  what it would run.
    candidates: every registered backend in the order of `auto`.
    notes:   what is legal in the call and unlikely to be meant, faster backends that something keeps away, tables that
             do not count, and plugins and backends with a failure.
    measured: from where the candidates' times are; None where no table has any.
    """

    request: Request
    choice: str | tuple[str, ...]
    backend: str | None
    kernel: str | None
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    measured: Measurement | None = None

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
            "measured": None if self.measured is None else asdict(self.measured),
        }

    def __str__(self) -> str:
        lines = [str(self.request)]
        lines.append(f"backend: {self.backend or 'none can serve it'}")
        without_op = [candidate.name for candidate in self.stopped_by("op")]
        elsewhere = [candidate.name for candidate in self.stopped_by("device")]
        for candidate in self.candidates:
            if candidate.name in (*without_op, *elsewhere):
                continue
            said = ", ".join(filter(None, (f"({candidate.kernel})", candidate.time)))
            if candidate.name == self.backend:
                lines[1] += f" {said}"
            elif candidate.reasons:
                lines.append(f"{candidate.name} cannot, because:")
                lines += [f"    {reason}" for reason in candidate.reasons]
            else:
                not_asked = "" if candidate.asked else ", not asked"
                lines.append(f"{candidate.name} could {said}{not_asked}")
        lines += [] if self.measured is None else [f"measured: {self.measured}"]
        lines += [f"not for this device: {', '.join(elsewhere)}"] if elsewhere else []
        lines += [f"without {self.request.op}: {', '.join(without_op)}"] if without_op else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def fingerprint(self) -> str | None:
        """The chosen backend's name and a hash of the kernel, the card, and the versions of torch, of the backend's
        plugin and of the packages it names: where two processes have the same one, their calls run the same code. None
        where nothing can serve the call, and for a device that is not here."""
        from xattn.dispatch.fingerprint import fingerprint

        if self.backend is None or self.kernel is None:
            return None
        return fingerprint(self.backend, self.kernel, self.request.device)

    def stopped_by(self, code: str) -> list[Candidate]:
        """Candidates with one reason, of this code."""
        return [each for each in self.candidates if [reason.code for reason in each.reasons] == [code]]


@overload
def explain(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **arguments: Unpack[Arguments]
) -> Explanation: ...
@overload
def explain(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Explanation: ...
def explain(*arguments: Any, backend: str | Sequence[str] = "auto", **named: Any) -> Explanation:
    """What a call would do, without doing it.

        xattn.explain(q, k, v, causal=True)                     # of xattn.attention
        xattn.explain(xattn.apply_rotary, q, k, cos, sin)       # of any other op

    Takes the arguments of the op's function, after that function; a tensor in its place means `attention`. Raises only
    InvalidArgumentError and UnknownBackendError.
    """
    _, prepared = described(arguments, named)
    return explain_request(prepared.request, chosen(backend), prepared.given)


def explain_request(
    request: Request, choice: Choice = "auto", given: Mapping[str, Any] = MappingProxyType({})
) -> Explanation:
    """`explain` for a request that was made by hand: another device's, say. given: as in `Prepared`."""
    from xattn.dispatch.measured import in_order, measured, unbuilt  # not with xattn itself
    from xattn.dispatch.tables.telling import measurement, near_ties, what_does_not_count

    names = allowed(choice, request.op)
    found: dict[str, Candidate] = {}
    failures: list[str] = []
    known = measured(request)
    times = {} if known is None else {name: time.p50_us for name, time in known.times.items()}
    kernels = [registry().entry(name) for name in names or () if "." in name]
    for entry in (*kernels, *_each_once(in_order(request))):
        kernel, reasons = backend_reasons(entry, request)
        kernel_name = "" if kernel is None else _kernel_name(entry, kernel, request, failures)
        asked = names is None or entry.name in names
        waits = None if kernel is None else unbuilt(entry, kernel, request, keep=False)
        found[entry.name] = Candidate(
            entry.name, entry.plugin, asked, kernel_name, tuple(reasons), times.get(entry.name), waits
        )
    try:
        backend: str | None = select(request, choice, planning=False)[0].name
    except UnsupportedError:
        backend = None
    able = [name for name, candidate in found.items() if not candidate.reasons]
    notes = [*request.notes(given), *_kept_away(backend, found, by_auto=names is None)]
    notes += what_does_not_count(request.device, able, known)
    if names is None:
        ready = [name for name in able if found[name].unbuilt is None]
        notes += near_ties({name: time for name, time in times.items() if name in ready}, backend)
    return Explanation(
        request,
        choice.backend if isinstance(choice, Wish) else choice,
        backend,
        found[backend].kernel if backend is not None else None,
        tuple(found.values()),
        (*notes, *failures, *registry().problems()),
        None if known is None else measurement(known),
    )


def _each_once(ordered: Sequence[tuple[Entry, Kernel[Any]]]) -> list[Entry]:
    """Every backend once: in the order of `auto`, then those that do not have the op."""
    return list(dict.fromkeys([*(entry for entry, _ in ordered), *registry().entries.values()]))


def _kernel_name(entry: Entry, kernel: Kernel[Any], request: Request, failures: list[str]) -> str:
    # A plugin's code, and no part of a call: a kernel that cannot name itself can still serve.
    try:
        return kernel.kernel_name(request)
    except BaseException as error:
        if not is_plugins(error):
            raise
        failures.append(f"{entry.name}: kernel_name() raised {raised(error)}")
        return entry.name


def _kept_away(backend: str | None, found: Mapping[str, Candidate], by_auto: bool) -> list[str]:
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
        elif not codes and by_auto and candidate.unbuilt is not None:
            notes.append(f"{name} ranks higher, but has to be built first: {candidate.unbuilt}. {BUILD.format(name)}")
        elif codes == {"disabled"}:
            notes.append(f"{name} ranks higher and could serve this call, but is disabled {candidate.reasons[0].got}")
        elif codes == {"broken"}:
            notes.append(f"{name} may rank higher, but is broken: {candidate.reasons[0].got}")
    return notes
