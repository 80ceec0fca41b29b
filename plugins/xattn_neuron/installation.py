"""Which of AWS's packages are there: found in metadata and on disk, never by importing them."""

from __future__ import annotations

from dataclasses import dataclass

from xattn import Reason


@dataclass(frozen=True)
class Installation:
    """AWS's packages that can be tried.

    nki, neuronx_cc, nkilib, nxdi, torch_neuronx: versions as PEP 440 text; None where absent or a placeholder.
    platform: "trn1", "inf2", "trn2", "trn3"; None where nothing tells.
    lnc:      physical cores to a logical one, 1 or 2.
    """

    nki: str | None = None
    neuronx_cc: str | None = None
    nkilib: str | None = None
    nxdi: str | None = None
    torch_neuronx: str | None = None
    platform: str | None = None
    lnc: int = 1


# Emulations and stand-ins set it, in their own worker process: returned in place of what is found.
overridden: Installation | None = None


def installation() -> Installation | Reason:
    """What is installed, or why nothing of it can be used."""
    return _found() if overridden is None else overridden


def clear() -> None:
    """Forget what was found."""


def describe() -> str:
    """One line for `xattn info`: what is there, and what to do if it cannot be used. Never raises."""
    return str(installation())


def _found() -> Installation | Reason:
    return Reason("neuron", "nothing", "AWS's Neuron SDK")
