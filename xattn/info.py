"""`info` and `backends`: what is installed here, as data."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from xattn.dispatch import choice
from xattn.dispatch.failures import is_plugins, raised
from xattn.dispatch.registry import Entry, registry
from xattn.plugin.backend import API_VERSION
from xattn.version import __version__


def backends() -> tuple[str, ...]:
    """The names of all registered backends that are not disabled."""
    return tuple(name for name, entry in registry().entries.items() if entry.disabled_by is None)


def info() -> dict[str, Any]:
    """Versions, devices, plugins with their distributions and failures, each backend's own account, tables of measured
    times and whether they count here, and, under "problems", a line for everything that is wrong.

    Imports no vendor package beyond what a backend's `info()` needs to say whether it can be used.
    """
    from xattn.dispatch.tables import places, reading  # not with xattn itself

    tables = [reading.report(file) for file in reading.tables().files]
    problems = registry().problems() + choice.problems() + reading.tables().problems
    return {
        "xattn": __version__,
        "plugin_api": API_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "devices": _devices(),
        "environment": {
            "XATTN_BACKEND": choice.environment,
            "XATTN_DISABLE": registry().disabled,
            "XATTN_TABLES": places.setting(),
        },
        "plugins": [asdict(plugin) for plugin in registry().plugins],
        "backends": [
            {
                "name": entry.name,
                "plugin": entry.plugin,
                "disabled_by": entry.disabled_by,
                "devices": _devices_of(entry),
                "ops": list(entry.ops),
                "info": _account(entry, problems),
            }
            for entry in registry().entries.values()
        ],
        "tables": tables,
        "problems": problems,
    }


def _devices_of(entry: Entry) -> list[str]:
    blocks = [block for kernel in entry.backend.kernels for block in kernel.capabilities]
    return list(dict.fromkeys(block.device for block in blocks))


def _account(entry: Entry, problems: list[str]) -> dict[str, str]:
    # A plugin's code: its failure belongs in the table, not in the user's face.
    try:
        return {str(key): str(value) for key, value in entry.backend.info().items()}
    except BaseException as error:
        if not is_plugins(error):
            raise
        problems.append(f"{entry.name}: info() raised {raised(error)}")
        return {}


def _devices() -> list[str]:
    found = [f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"]
    if torch.cuda.is_available():
        kind = "cuda" if torch.version.hip is None else "rocm"
        found += [f"{kind}:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return found
