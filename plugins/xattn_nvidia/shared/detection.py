"""What the backends' lines in `xattn info` have in common. Nothing is imported to find out."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

import torch

from xattn import Reason
from xattn.plugin.devices import device_and_arch, emulated


def described(found: object, archs: frozenset[str]) -> str:
    """One line: what is there, and what to do if it cannot be used. Never raises. found: a Reason, or what is there."""
    if isinstance(found, Reason):
        return f"cannot be used: {found.got}. {found.hint}"
    try:
        return f"{found}; {_device(archs)}"
    except Exception as error:  # a broken driver, say: it belongs in the line
        return f"{found}; but torch cannot say what the device is: {' '.join(str(error).split())}"


def _device(archs: frozenset[str]) -> str:
    here = [arch for device, arch in emulated.values() if device == "cuda"]
    if not here:
        if torch.version.cuda is None:
            return "but torch has no CUDA"
        if not torch.cuda.is_available():
            return "but torch sees no CUDA device"
        here = [device_and_arch(torch.device("cuda", index))[1] for index in range(torch.cuda.device_count())]
    served = [str(arch) for arch in dict.fromkeys(here) if arch in archs]
    if not served:
        return f"but it is for {', '.join(sorted(archs))}, and here is {', '.join(dict.fromkeys(map(str, here)))}"
    return f"on {', '.join(served)}"


def installed(*names: str) -> str | None:
    """The version of the first of these distributions that there is."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def at_least(found: str, wanted: str) -> bool:
    """Whether a version is another one or newer; of pre-releases a beta goes before its release."""
    return _key(found) >= _key(wanted)


def _key(text: str) -> tuple[int, ...]:
    numbers, beta = re.match(r"([\d.]*\d)(?:b(\d+))?", text + "0" * (not text)).groups()  # type: ignore[union-attr]
    parts = [int(each) for each in numbers.split(".")][:3]
    return (*parts, *(0,) * (3 - len(parts)), 2**30 if beta is None else int(beta))
