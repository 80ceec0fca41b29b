"""AWS's distributions, one by one: real, a placeholder, or absent.

PyPI has a placeholder under every one of these names. Some raise ImportError("WRONG PACKAGE") on import, some install a
folder with a hyphen in its name, which nothing can import, and one is empty, while the metadata of all says that they
are installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

# Distribution -> the folder that it installs.
MODULES = {
    "torch-neuronx": "torch_neuronx",
    "nki": "nki",
    "libneuronxla": "libneuronxla",
    "neuronx-cc": "neuronxcc",
    "neuronx-distributed": "neuronx_distributed",
    "neuronx-distributed-inference": "neuronx_distributed_inference",
    "nki-library": "nkilib_src",
}

# What the placeholders' own descriptions and modules say.
_MARKS = ("WRONG PACKAGE", "does not publish installable wheels to PyPI")


@dataclass(frozen=True)
class Package:
    """version: the distribution's; "unknown" for a module without metadata, "" for neither.
    wrong: why the module cannot be imported although something of that name is installed; empty if it can."""

    name: str
    version: str
    wrong: str = ""

    @property
    def usable(self) -> bool:
        return bool(self.version) and not self.wrong

    @property
    def got(self) -> str:
        return f"{self.name} {self.version} is {self.wrong}"

    @property
    def advice(self) -> str:
        return f"{self.got}: pip uninstall {self.name}"


def look() -> dict[str, Package]:
    """Every package by its distribution's name. Reads metadata and files; imports nothing."""
    return {name: _package(name, module) for name, module in MODULES.items()}


def _package(name: str, module: str) -> Package:
    found = _metadata(name)
    spec = _spec(module)
    version = found.version if found is not None else ("unknown" if spec is not None else "")
    if found is not None and _marked(_description(found)):
        return Package(name, version, "PyPI's placeholder")
    if spec is not None and spec.origin is not None and _marked(_text(Path(spec.origin))):
        return Package(name, version, "PyPI's placeholder")
    if found is not None and spec is None:
        return Package(name, version, f"in the metadata, but there is no {module} to import")
    if spec is not None and spec.origin is None:  # any folder of that name
        return Package(name, "") if found is None else Package(name, version, f"without {module}/__init__.py")
    return Package(name, version)


def bundled_nkilib() -> bool:
    """Whether neuronx-cc, or who installed it, brought `import nkilib`."""
    spec = _spec("nkilib")
    return spec is not None and spec.origin is not None


def legacy_attention() -> bool:
    """Whether there is a neuronxcc.nki.kernels.attention, as source or compiled."""
    spec = _spec("neuronxcc")
    folders = [] if spec is None else [Path(each) for each in spec.submodule_search_locations or ()]
    return any(any((folder / "nki" / "kernels").glob("attention.*")) for folder in folders)


def _metadata(name: str) -> Distribution | None:
    # A removal that went wrong leaves a folder without METADATA.
    return next((each for each in distributions(name=name) if _description(each)), None)


def _description(distribution: Distribution) -> str:
    return distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""


def _spec(module: str) -> ModuleSpec | None:
    """Of a top-level name: to look for one below it, Python imports what is above."""
    try:
        return find_spec(module)
    except ValueError:  # sys.modules has a module that somebody made by hand
        return None


def _marked(text: str) -> bool:
    return any(mark in text for mark in _MARKS)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.suffix == ".py" else ""
