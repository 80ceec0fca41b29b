"""What the tests share: tensors, other Python processes, wheels, and strangers' plugins."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import xattn
from xattn import Backend, Kernel, hookimpl
from xattn.dispatch.registry import Registry
from xattn.plugin.geometry import Geometry

ROOT = Path(__file__).resolve().parents[1]


def extended(*values: Any) -> list[Any]:
    """Values of a parameter that show again what another value shows: for `make extended` alone."""
    return [pytest.param(value, marks=pytest.mark.extended) for value in values]


def named(value: Any) -> str:
    """Of a parameter: a set in one order, in whatever process."""
    return str(sorted(value) if isinstance(value, (set, frozenset)) else value)


Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# The fixture `load`.
Load = Callable[..., Registry]


def qkv(
    batch: int = 2,
    seqlen_q: int = 4,
    seqlen_k: int | None = None,
    nheads: int = 4,
    nheads_k: int | None = None,
    headdim: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Qkv:
    """q, k, v of one attention call, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    seqlen_k, nheads_k = seqlen_k or seqlen_q, nheads_k or nheads
    shapes = ((batch, seqlen_q, nheads, headdim), *[(batch, seqlen_k, nheads_k, headdim)] * 2)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def visible_pairs(geometry: Geometry) -> set[tuple[int, int]]:
    """Every (query, key) that is visible, by the contract's formula."""
    left, right, offset = geometry.left, geometry.right, geometry.offset
    return {
        (i, j)
        for i in range(geometry.seqlen_q)
        for j in range(geometry.seqlen_k)
        if (left is None or i + offset - left <= j) and (right is None or j <= i + offset + right)
    }


def execute(command: Sequence[str | Path], cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end, with nothing of this process's XATTN_* settings, and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XATTN_", "PYTHONPATH"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", "XATTN_TABLES": "off", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.args} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(code: str, cwd: Path, path: Sequence[Path] = (), **environment: str) -> str:
    """Run code in a Python of its own, started in `cwd`, with `path` ahead of what is installed."""
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return execute([sys.executable, "-c", textwrap.dedent(code)], cwd, environment)


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build a project offline, with what is installed, into `folder`. Returns the one file that came out."""
    before = set(folder.glob("*"))
    execute([sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", folder, source], folder)
    (made,) = set(folder.glob("*")) - before
    return made


def install(target: Path, *wheels: Path) -> Path:
    """Install wheels, without their dependencies, into a folder of its own."""
    pip: list[str | Path] = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--target", target, *wheels]
    execute(pip, target.parent)
    return target


def stranger(
    folder: Path, name: str, source: str, *, plugin: str | None = None, value: str | None = None, metadata: bool = True
) -> list[EntryPoint]:
    """Lay out an installed distribution `name` with one module and one entry point in the group xattn.

    source: the module's text; the module is called `name` with _ for -.
    plugin: the entry point's name, by default the distribution's. value: what it points to, by default the module.
    metadata: False leaves METADATA out, as a removal that went wrong does.
    """
    module = name.replace("-", "_")
    sys.modules.pop(module, None)  # another test's of the same name
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[xattn]\n{plugin or name} = {value or module}\n")
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return list(Distribution.at(info).entry_points)


def backend_source(name: str, answer: float, priority: int = 1000, body: str = "", backend: str = "") -> str:
    """A plugin module with one backend, whose kernel accepts every float32 call of `attention` on the CPU and answers
    with a constant, so that its answer tells who served.

    body, backend: further members of the kernel's class and of the backend's, which may override the ones here.
    """
    return f"""
import torch
import xattn

WORDS = xattn.AttentionRequest.vocabulary

class Attention(xattn.AttentionKernel):
    capabilities = (
        xattn.Capabilities(
            device="cpu", dtypes=frozenset({{torch.float32}}), features=frozenset(WORDS.feature_names),
            grads=frozenset(WORDS.grads), priority={{"default": {priority}}}, checked="never",
        ),
    )

    def plan(self, request):
        return lambda q, k, v, **tensors: torch.full_like(q, {answer})

{_members(body)}

class Stranger(xattn.Backend):
    name = {name!r}
    api_version = 1
    kernels = (Attention(),)

{_members(backend)}

@xattn.hookimpl
def xattn_backends():
    return [Stranger()]
"""


def _members(source: str) -> str:
    return textwrap.indent(textwrap.dedent(source), "    ")


def backend_of(name: str, *kernels: Kernel[Any]) -> Backend:
    """A backend of these kernels."""
    made: type[Backend] = type("Made", (Backend,), {"name": name, "api_version": 1, "kernels": kernels})
    return made()


def plugin(name: str, *backends: Backend) -> EntryPoint:
    """The entry point of a plugin of these backends, for `xattn.testing.fresh`."""
    module = ModuleType(f"plugin_{name.replace('-', '_')}")
    module.__dict__["xattn_backends"] = hookimpl(lambda: list(backends))
    sys.modules[module.__name__] = module
    return EntryPoint(name, module.__name__, "xattn")


def notes_of(error: BaseException) -> list[str]:
    """What `add_note` added."""
    found: list[str] = getattr(error, "__notes__", [])
    return found


def served(**arguments: Any) -> float:
    """The constant with which a stranger of `backend_source` answered a call."""
    out: torch.Tensor = xattn.attention(*qkv(), **arguments)
    assert torch.equal(out, torch.full_like(out, out.flatten()[0].item())), "no stranger served this call"
    return out.flatten()[0].item()
