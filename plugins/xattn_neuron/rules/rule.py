"""What a rule is, and how its links are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The newest public tree of each source that the rules were checked against.
_COMMITS = {
    "nki-library": "d2ad3a579498d1888aa8740af97fd325dd5f2740",
    "neuronx-distributed-inference": "4bcdc54bf3b6ccdad490e5cd0680a3dc95270b8e",
    "neuronx-distributed": "fbac349b61a3adbb123c2983835af692840ff62f",
    # The last one that has the source of neuronxcc.nki.kernels.attention.
    "nki-samples": "8370e11ba8d894be5e3c687c0772e7e1e889de4c",
    "aws-neuron-sdk": "81ce03ae261e12925e53437a0f690478e6366155",
}


@dataclass(frozen=True)
class Rule:
    """One defect of AWS's kernels or packages, or one limit that their documentation does not tell of.

    backend:   whose calls it concerns: "nki", "nki-legacy" or "both".
    package:   whose versions are meant.
    versions:  those that have it, as a `packaging` specifier of >= and < alone; "" for every one.
    link:      upstream's issue, or line of code or documentation at a commit.
    what:      what AWS's code does. guard: what xattn does about it.
    callable_yet: False where no call of xattn can meet it yet; `guard` then says what is missing.
    """

    name: str
    backend: str
    package: Literal["nki", "nxdi", "neuronx_cc"]
    versions: str
    link: str
    what: str
    guard: str
    callable_yet: bool = True


def line(repository: str, path: str, number: int) -> str:
    return f"https://github.com/aws-neuron/{repository}/blob/{_COMMITS[repository]}/{path}#L{number}"


def issue(repository: str, number: int) -> str:
    return f"https://github.com/aws-neuron/{repository}/issues/{number}"
