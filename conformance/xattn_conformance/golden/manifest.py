"""The manifest of the stored goldens: versions, hashes of the files, and the hash of every case's inputs."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import msgspec

# Version of the contract's meaning: what a right answer is.
SEMANTICS = "1.0"
# Version of the input generator: which bits a case's inputs have.
GENERATOR = "1.0"

DATA = Path(__file__).with_name("data")
NAME = "manifest.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """files: sha256 by file name. inputs: sha256 of the bits of the inputs by the id of the case, for every anchor and
    every case that the suite had when the manifest was published."""

    suite: str
    semantics: str
    generator: str
    files: dict[str, str]
    inputs: dict[str, str]


class GoldenError(ValueError):
    """The stored goldens cannot be read. The message is for the user."""


def folder() -> Path:
    """That of the newest version of the goldens: data/v1, data/v2, ..."""
    versions = sorted(int(each.name[1:]) for each in DATA.glob("v*") if each.name[1:].isdecimal())
    return DATA / f"v{versions[-1] if versions else 1}"


def read(where: Path) -> Manifest:
    """Raises GoldenError."""
    try:
        return msgspec.json.decode((where / NAME).read_bytes(), type=Manifest)
    except OSError as error:
        raise GoldenError(f"the golden manifest {NAME} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise GoldenError(f"the golden manifest {NAME} is damaged: {error}") from error


@cache
def installed() -> Manifest:
    """The manifest of this suite. Raises GoldenError."""
    return read(folder())


def manifest_digest() -> str:
    """sha256 of the manifest, which names everything else; "" where there is none."""
    path = folder() / NAME
    return sha256(path.read_bytes()) if path.exists() else ""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
