"""What came through the door: one line for each caller and outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

# served: by a backend of xattn. torch's: by torch's own kernel, which xattn would take too. declined: by torch's own
# kernel, since no backend can serve the call as asked. bypassed: attention that never calls the function.
Outcome = Literal["served", "torch's", "declined", "bypassed"]


@dataclass(frozen=True)
class Line:
    """`calls` calls from the module `caller` with one outcome. why: the backend of a served call, else the reason."""

    caller: str
    outcome: Outcome
    why: str
    calls: int


@dataclass(frozen=True)
class Report:
    """`str()` of it is for people, `as_dict()` for machines. A compiled call counts while it is traced, a few times,
    and not when it runs."""

    lines: tuple[Line, ...]

    @classmethod
    def of(cls, counts: Mapping[tuple[Outcome, str], Mapping[str, int]]) -> Report:
        """counts: outcome and reason -> caller -> calls."""
        lines = [Line(who, *key, calls) for key, callers in counts.items() for who, calls in callers.items()]
        return cls(tuple(sorted(lines, key=lambda line: (line.caller, line.outcome, line.why))))

    def calls(self, outcome: Outcome) -> int:
        """How many calls had an outcome."""
        return sum(line.calls for line in self.lines if line.outcome == outcome)

    def as_dict(self) -> dict[str, Any]:
        return {"lines": [asdict(line) for line in self.lines]}

    def __str__(self) -> str:
        if not self.lines:
            return "no call of F.scaled_dot_product_attention came through"
        text: list[str] = []
        for caller in dict.fromkeys(line.caller for line in self.lines):
            text.append(caller)
            text += [f"    {_said(line)}" for line in self.lines if line.caller == caller]
        return "\n".join(text)


def _said(line: Line) -> str:
    calls = f"{line.calls} call{'s' * (line.calls != 1)}"
    match line.outcome:
        case "served":
            return f"{calls} served by {line.why}"
        case "torch's":
            return f"{calls} left to torch: {line.why}"
        case "declined":
            return f"{calls} left to torch, because: {line.why}"
        case "bypassed":
            return f"{calls} bypassed: {line.why}"
