"""Why a backend cannot serve a call: data first, text at the edge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One thing that stops one backend.

    code: what the reason is about, an argument's name wherever there is one ("softcap", "dtype", "headdim").
    got:  what the call has, as a value or as text.
    want: what the backend can serve, likewise.
    hint: what the caller can do about it; empty if nothing.

    Pass values rather than f-strings: under torch.compile a size can be symbolic, and text made of it breaks the graph.
    """

    code: str
    got: object
    want: object
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        """All text, fit for JSON."""
        return {"code": self.code, "got": str(self.got), "want": str(self.want), "hint": self.hint}

    def __str__(self) -> str:
        text = f"{self.code}={self.got} (supported: {self.want})"
        return f"{text}. {self.hint}" if self.hint else text
