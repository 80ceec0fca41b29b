"""Why a backend cannot serve a call: data first, text at the edge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One thing that stops one backend.

    code: what the reason is about, an argument's name wherever there is one ("softcap", "dtype", "headdim").
    got:  what the call has.
    want: what the backend can serve.
    hint: what the caller can do about it; empty if nothing.
    """

    code: str
    got: str
    want: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.code}={self.got} (supported: {self.want})"
        return f"{text}. {self.hint}" if self.hint else text
