"""Where times were measured, or would be: the device, and the versions of all that they depend on."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from xattn.dispatch.registry import Entry, registry
from xattn.plugin.devices import card, real

Versions = Mapping[str, str]


@dataclass(frozen=True)
class Environment:
    """device, arch: as in `Request`. card: the GPU's or CPU's name.

    versions: of what every kernel depends on: torch, and on a GPU cuDNN and the driver.
    packages: by backend, the versions of its plugin's distribution and of the `packages` that it names.
    """

    device: str
    arch: str | None
    card: str
    versions: Versions
    packages: Mapping[str, Versions]

    @property
    def key(self) -> str:
        """What no other environment has, fit for a file's name."""
        text = repr(sorted((name, _plain(value)) for name, value in asdict(self).items()))
        return f"{self.device}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def difference(self, here: Environment) -> str:
        """Why nothing that was measured in this environment counts in another; empty where it may count."""
        for what, there, now in (("arch", self.arch, here.arch), ("card", self.card, here.card)):
            if there != now:
                return f"measured on {there or f'no {what}'}, here is {now or f'no {what}'}"
        return _changed(self.versions, here.versions)

    def stale(self, here: Environment, vouched: str = "") -> dict[str, str]:
        """The backends, of those that are here, whose packages are other ones now, each with what changed.

        vouched: a distribution that a plugin's own tables come with, whose version therefore does not matter.
        """
        found = {}
        for backend, there in self.packages.items():
            if backend in here.packages:
                now = here.packages[backend]
                kept = [{name: v for name, v in versions.items() if name != vouched} for versions in (there, now)]
                if text := _changed(*kept):
                    found[backend] = text
        return found


def _plain(value: object) -> object:
    return sorted((name, _plain(of)) for name, of in value.items()) if isinstance(value, Mapping) else value


def _changed(there: Versions, now: Versions) -> str:
    names = [name for name in dict.fromkeys([*there, *now]) if there.get(name) != now.get(name)]
    return ", ".join(f"{name} {there.get(name, 'missing')} there, {now.get(name, 'missing')} here" for name in names)


def here(device: str) -> Environment | None:
    """This process's environment; None for a device that this machine has not."""
    kind = _torch_device(device)
    if kind is None:
        return None
    packages = {entry.name: _packages(entry) for entry in registry().entries.values()}
    return Environment(device, real(kind)[1], card(kind), _versions(kind), packages)


def _torch_device(device: str) -> torch.device | None:
    """The device that torch has for one of xattn's; of GPUs the first."""
    if device == "cpu":
        return torch.device("cpu")
    if device in ("cuda", "rocm") and torch.cuda.is_available():
        found = torch.device("cuda", 0)
        return found if real(found)[0] == device else None
    return None


def _versions(device: torch.device) -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    if device.type == "cuda":
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["driver"] = _driver()
    return found


def _driver() -> str:
    """The version of CUDA or HIP that the driver is for, as "13000": torch does not tell it."""
    hip = torch.version.hip is not None
    names = ("amdhip64.dll", "libamdhip64.so") if hip else ("nvcuda.dll", "libcuda.so.1")
    number = ctypes.c_int()
    try:
        library = ctypes.CDLL(names[0] if sys.platform == "win32" else names[1])
        (library.hipDriverGetVersion if hip else library.cuDriverGetVersion)(ctypes.byref(number))
    except (OSError, AttributeError):
        return "unknown"
    return str(number.value)


def _packages(entry: Entry) -> dict[str, str]:
    plugin = next(plugin for plugin in registry().plugins if plugin.name == entry.plugin)
    found = {plugin.distribution: plugin.version} if plugin.distribution else {}
    for name in entry.backend.packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
