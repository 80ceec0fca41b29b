"""Where a run took place: versions and the device, and no name or folder of the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import xattn_conformance
from xattn.dispatch.registry import registry
from xattn.plugin.devices import emulated, real
from xattn_conformance.result import SUITE
from xattn_conformance.running.target import Target

_HOME = Path(xattn_conformance.__file__).resolve().parent

# Variables that change which kernel runs, or how.
_PREFIXES = ("XATTN_", "OMP_", "MKL_", "CUDA_", "HIP_", "NEURON_", "TRITON_", "PYTORCH_")


def describe(target: Target) -> dict[str, Any]:
    """The part that the process of the backend knows."""
    entry = registry().entry(target.backend)
    plugin = next(each for each in registry().plugins if each.name == entry.plugin)
    try:
        backend = {str(key): _without_folders(str(value)) for key, value in entry.backend.info().items()}
    except Exception as error:  # a stranger's code, and no part of a result
        backend = {"info() raised": f"{type(error).__name__}: {error}"}
    return {
        "suite": SUITE,
        "xattn": version("xattn"),
        "plugin": {"name": plugin.name, "distribution": plugin.distribution, "version": plugin.version},
        "backend": backend,
        "executor": {str(key): str(value) for key, value in getattr(target.execute, "about", {}).items()},
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": _device(target.device),
        "threads": torch.get_num_threads(),
    }


def here() -> dict[str, Any]:
    """The part that the runner knows: the commit, and the variables as its caller set them."""
    variables = {name: _without_folders(value) for name, value in sorted(os.environ.items()) if _matters(name)}
    return {**commit(), "variables": variables}


def commit(folder: Path = _HOME) -> dict[str, Any]:
    """The commit of a checkout, by default the suite's, and whether its tree was dirty; empty outside a checkout."""
    if not any((parent / ".git").exists() for parent in folder.parents):
        return {}
    try:
        head = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown: git does not answer"}
    return {"commit": head, "dirty": dirty}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _matters(name: str) -> bool:
    return name.startswith(_PREFIXES)


def _without_folders(value: str) -> str:
    return re.sub(r"(^|[:;,=(\s])/[^:;,)\s]*", r"\1(a folder)", value).replace("((a folder))", "(a folder)")


def _device(device: str) -> dict[str, str | None]:
    where = torch.device(device)
    kind, arch = real(where)
    if where.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif kind == "cpu":
        name = _processor()
        arch = torch.backends.cpu.get_cpu_capability()
    else:
        # Other devices' modules in torch have the function by custom, not by rule.
        name = getattr(getattr(torch, where.type, None), "get_device_name", lambda _: kind)(device)
    found = {"kind": kind, "name": name, "arch": arch}
    if where.type in emulated:
        found["taken for"] = " ".join(filter(None, emulated[where.type]))
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
