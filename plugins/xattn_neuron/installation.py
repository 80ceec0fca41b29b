"""Which of AWS's packages and devices are there: found in metadata and on disk, never by importing anything of AWS's.

On PyPI every one of these names is a placeholder (see `packages`), and some of the real modules look for a device while
they are imported.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from xattn import AttentionRequest, Reason
from xattn.plugin.constant import traced_as_constant
from xattn.plugin.devices import emulated
from xattn_neuron import packages

# Where the kernel says what the machine is, and where the driver puts its devices.
PRODUCT = Path("/sys/devices/virtual/dmi/id/product_name")
DEVICES = Path("/dev")

PLATFORMS = ("trn1", "inf2", "trn2", "trn3")
_TARGETS = {"trn1n": "trn1", "gen2": "trn1", "gen3": "trn2", "gen4": "trn3"}
_OVERRIDE, _LNC = "NEURON_PLATFORM_TARGET_OVERRIDE", "NEURON_LOGICAL_NC_CONFIG"

INSTALL = (
    "For AWS Trainium and Inferentia: pip install 'xattn[neuron]' "
    "--extra-index-url https://pip.repos.neuron.amazonaws.com (docs/neuron.md)."
)
_WANT = "AWS's Neuron SDK"


@dataclass(frozen=True)
class Installation:
    """AWS's packages that can be tried.

    nki, neuronx_cc, nkilib, nxdi, torch_neuronx: versions as PEP 440 text; None where absent or a placeholder,
                      "unknown" for modules without metadata. nkilib: nki-library's, or that of the neuronx-cc it is in.
    platform:         "trn1", "inf2", "trn2", "trn3"; None where nothing tells.
    lnc:              physical cores to a logical one, 1 or 2.
    legacy_attention: neuronx-cc has neuronxcc.nki.kernels.attention.
    forward_only:     every call is compiled by NxDI, which knows no backward.
    """

    nki: str | None = None
    neuronx_cc: str | None = None
    nkilib: str | None = None
    nxdi: str | None = None
    torch_neuronx: str | None = None
    platform: str | None = None
    lnc: int = 1
    legacy_attention: bool = True
    forward_only: bool = False

    def __str__(self) -> str:
        named = (
            ("nki", self.nki),
            ("neuronx-cc", self.neuronx_cc),
            ("nkilib", self.nkilib),
            ("neuronx-distributed-inference", self.nxdi),
            ("torch-neuronx", self.torch_neuronx),
        )
        there = ", ".join(f"{name} {version}" for name, version in named if version is not None)
        return f"{there}, on {self.platform or 'an unknown platform'} (LNC {self.lnc})"


# Emulations and stand-ins set it, in their own worker process: returned in place of what is found.
overridden: Installation | None = None


def installation() -> Installation | Reason:
    """What can be tried, or why nothing can. Found once in a process: tests that lay out a site folder call `clear()`
    after every change."""
    return _found() if overridden is None else overridden


def usable() -> Installation:
    """The packages of a kernel that had no reasons."""
    found = installation()
    assert isinstance(found, Installation)
    return found


def clear() -> None:
    """Forget what was found."""
    _cached.cache_clear()


def describe() -> str:
    """One line for `xattn info`: what is there, and what to do if it cannot be used. Never raises."""
    installed = installation()
    if isinstance(installed, Reason):
        return f"cannot be used: {installed.got}. {installed.hint}"
    if overridden is not None:
        return str(installed)
    wrong = [each.advice for each in packages.look().values() if each.wrong]
    return ". ".join([str(installed), *wrong])


def gradient_reasons(request: AttentionRequest, installed: Installation) -> list[Reason]:
    if not (request.any_grad and installed.forward_only):
        return []
    return [Reason("grad_qkv", "required", "forward only", "NxDI compiles no backward. Call it under torch.no_grad().")]


@traced_as_constant
def _found() -> Installation | Reason:
    return _cached()


@functools.cache
def _cached() -> Installation | Reason:
    there = packages.look()
    usable = {name: each.version for name, each in there.items() if each.usable}
    wrong = [each.advice for each in there.values() if each.wrong]
    # The distribution nki-library alone brings `nkilib_src`; `import nkilib` is neuronx-cc's, which it stands in for.
    nkilib = (usable.get("nki-library") or usable.get("neuronx-cc")) if packages.bundled_nkilib() else None
    if not usable:
        device = _device()
        got = "; ".join(each.got for each in there.values() if each.wrong) or "none of its packages is installed"
        if device:
            got = f"{got}, beside {device}"
        return _reason(got, " ".join([*wrong, INSTALL]))
    if "torch-neuronx" not in usable:
        broken = there["torch-neuronx"]
        got = f"{_listed(usable)}, but {broken.got if broken.wrong else 'not torch-neuronx'}"
        return _reason(got, " ".join([*wrong, "Nothing calls a kernel from torch without it.", INSTALL]))
    if not _device() and not os.environ.get(_OVERRIDE):
        look = "Look at neuron-ls, lsmod | grep neuron, and the rights on /dev/neuron*"
        return _reason(f"{_listed(usable)}, but no Neuron device", f"{look}; to compile without one, {_OVERRIDE}=trn2.")
    platform = _platform()
    lnc = _logical_cores(platform)
    if isinstance(lnc, Reason):
        return lnc
    return Installation(
        nki=usable.get("nki"),
        neuronx_cc=usable.get("neuronx-cc"),
        nkilib=nkilib,
        nxdi=usable.get("neuronx-distributed-inference"),
        torch_neuronx=usable["torch-neuronx"],
        platform=platform,
        lnc=lnc,
        legacy_attention=packages.legacy_attention(),
    )


def _listed(usable: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in usable.items())


def _device() -> str:
    """The first device of the driver; empty where there is none."""
    return next((str(path) for path in sorted(DEVICES.glob("neuron[0-9]*"))), "")


def _platform() -> str | None:
    for device, arch in emulated.values():
        if device == "neuron":
            return arch
    told = os.environ.get(_OVERRIDE)
    if told is None:
        try:
            # "trn2.48xlarge", "trn2u.48xlarge", "inf2.xlarge"
            told = PRODUCT.read_text().strip().partition(".")[0]
        except OSError:
            told = ""
        told = told if _known(told) else _from_torch_neuronx()
    return _known(told)


def _known(name: str) -> str | None:
    name = _TARGETS.get(name.lower(), name.lower())
    found = re.match(r"(trn|inf)\d", name)
    return found[0] if found is not None and found[0] in PLATFORMS else None


def _from_torch_neuronx() -> str:
    """What torch_neuronx says, if somebody has imported it."""
    utils = sys.modules.get("torch_neuronx.utils")
    if utils is None:
        return ""
    try:
        return str(utils.get_platform_target())
    except (RuntimeError, OSError):  # what it raises off Neuron
        return ""


def _logical_cores(platform: str | None) -> int | Reason:
    told = os.environ.get(_LNC)
    if told is None:
        return 2 if platform in ("trn2", "trn3") else 1
    if told not in ("1", "2"):
        return Reason("environment", f"{_LNC}={told}", "1 or 2", "Set it to one of them, or unset it.")
    return int(told)


def _reason(got: str, hint: str) -> Reason:
    return Reason("neuron", got, _WANT, hint)
