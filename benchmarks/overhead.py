"""What xattn adds to a call, to a first call, and to an import."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from tempfile import TemporaryDirectory

import fillers
import torch
import torch.nn.functional as F
from common import Row, qkv, sdpa

import xattn
from xattn.dispatch import plans
from xattn.dispatch.registry import registry
from xattn.dispatch.tables import format as tables
from xattn.dispatch.tables.environment import here
from xattn.dispatch.tables.kind import kind_of
from xattn.measure import alternate
from xattn.ops.table import OPS
from xattn.testing import fresh
from xattn.tune import storing

_sdpa = F.scaled_dot_product_attention
FEW_KEYS = 16
SHAPES = ((1, 1, 1, 8), (1, 16, 8, 64))
HIT_US, PLAN_US, MISS_US, IMPORT_MS = 1.5, 0.2, 200.0, 30.0
BACKENDS = 10
# Packages that hold kernels, or that only an integration may import.
VENDORS = (
    "aiter",
    "flash_attn",
    "neuronxcc",
    "nki",
    "torch_neuronx",
    "torch_xla",
    "transformers",
    "triton",
    "xformers",
)
IMPORT = f"""
import json, sys, time, torch
before = set(sys.modules)
start = time.perf_counter()
import xattn
taken = (time.perf_counter() - start) * 1e3
new = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
print(json.dumps([taken, new, sorted(set(new) & set({VENDORS!r}))]))
"""


def rows(quick: bool) -> Iterator[Row]:
    for shape in SHAPES:
        yield from _hit_and_plan(shape, 1.0 if quick else 6.0)
    yield _miss(1.0 if quick else 4.0)
    yield _miss(1.0 if quick else 4.0, measured=True)
    yield _import(3 if quick else 9)


def _hit_and_plan(shape: tuple[int, int, int, int], seconds: float) -> Iterator[Row]:
    q, k, v = qkv(*shape)
    # The same call as xattn makes: below 16 keys it passes a mask of zeros, without which torch's kernel gives 0 for a
    # query whose scores are all NaN.
    zeros = torch.zeros(1, 1, 1, shape[1]) if shape[1] < FEW_KEYS else None
    with torch.no_grad():
        held = xattn.plan(q, k, v)
        timing = alternate(
            {
                # Spelt out: a helper's own call would count for xattn.
                "SDPA": (lambda: _sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2))
                if zeros is None
                else lambda: _sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), zeros).transpose(1, 2),
                "SDPA without the mask of zeros": lambda: _sdpa(
                    q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
                ).transpose(1, 2),
                "attention": lambda: xattn.attention(q, k, v),
                "plan": lambda: held(q, k, v),
            },
            seconds=seconds,
        )
    data = timing.as_dict("SDPA")
    for name, what, limit in (("attention", "attention()", HIT_US), ("plan", "a held plan", PLAN_US)):
        extra = timing.difference(name, "SDPA")
        measured = f"{extra:+.2f} us ({timing.p50(name):.2f} after {timing.p50('SDPA'):.2f})"
        if zeros is not None:
            without = timing.difference(name, "SDPA without the mask of zeros")
            measured += f"; {without:+.2f} us over SDPA without the mask of zeros that NaN needs below {FEW_KEYS} keys"
        what = f"{what} over the same SDPA call, q {shape}"
        yield Row("overhead", what, f"<= {limit} us", measured, extra, limit, timing.method, data)


def _miss(seconds: float, measured: bool = False) -> Row:
    """measured: a table has the times of such calls, which then decide the order."""
    q, k, v = qkv(*SHAPES[1])

    def miss() -> None:
        plans.clear()
        xattn.attention(q, k, v)

    with torch.no_grad(), _tables(q, k, v, measured), _ten_backends() as declining:
        timing = alternate({"miss": miss, "SDPA": lambda: sdpa(q, k, v)}, seconds=seconds)
        served = xattn.explain(q, k, v).backend
    p50 = timing.p50("miss")
    what = "a miss that a table has times of" if measured else "a miss"
    what += f", the whole call: {BACKENDS} backends of {len(OPS)} ops, {declining} decline before {served}"
    found, bar = f"{p50:.0f} us", f"<= {MISS_US:.0f} us"
    return Row("overhead", what, bar, found, p50, MISS_US, timing.method, timing.as_dict("SDPA"))


@contextmanager
def _tables(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, measured: bool) -> Iterator[None]:
    """What the user measured is aside; a table with times of one call is in its place, where asked for."""
    before = os.environ.get("XATTN_TABLES")
    with TemporaryDirectory() as folder:
        os.environ["XATTN_TABLES"] = folder if measured else "off"
        kind, environment = kind_of(xattn.explain(q, k, v).request), here("cpu")
        assert kind is not None
        assert environment is not None
        times = {name: tables.Time(1.0, 1.0, 1.0, "") for name in ("sdpa", "reference")}
        row = tables.Row(kind, "the call of the benchmark", storing.now(), times)
        storing.add(Path(folder) / "table.json", tables.Table(environment, "eager", "none: made up", ()), row)
        try:
            with fresh():
                yield
        finally:
            os.environ.pop("XATTN_TABLES")
            if before is not None:
                os.environ["XATTN_TABLES"] = before


@contextmanager
def _ten_backends() -> Iterator[int]:
    """As many as BACKENDS says; gives the number of those added, which are asked first."""
    fillers.COUNT = max(BACKENDS - len(registry().entries), 0)
    with fresh([*entry_points(group="xattn"), EntryPoint("fillers", "fillers", "xattn")]):
        yield fillers.COUNT


def _import(times: int) -> Row:
    with TemporaryDirectory() as compiled:
        # As an installed package has it: compiled, by the first of these processes, which does not count.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
        command = [sys.executable, "-c", IMPORT]
        outputs = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            for _ in range(1 + times)
        ]
    runs = [json.loads(output) for output in outputs[1:]]
    p50 = statistics.median(taken for taken, _, _ in runs)
    _, new, vendors = runs[0]
    found = f"imports {', '.join(vendors)}" if vendors else "no vendor package"
    method = f"median of {times} fresh processes, each after `import torch`"
    data = {"ms": [taken for taken, _, _ in runs], "new_modules": new, "vendors": vendors}
    value = float("inf") if vendors else p50
    bar = f"<= {IMPORT_MS:.0f} ms, no vendor package"
    return Row("overhead", "import xattn after torch", bar, f"{p50:.1f} ms, {found}", value, IMPORT_MS, method, data)
