"""What the tests over every op share: the calls that each op's room brings, and a kernel of any op."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from sample import Illegal, Sample
from xattn_reference.backend import ReferenceBackend

import xattn
from xattn.dispatch.op import Op
from xattn.ops.table import OPS
from xattn.plugin import Plan


def samples(op: Op, length: int = 5) -> dict[str, Sample]:
    """Legal calls, by name, with tensors of their own."""
    made: dict[str, Sample] = importlib.import_module(f"ops.{op.name}.samples").samples(length)
    return made


def illegal(op: Op) -> dict[str, Illegal]:
    """Illegal calls, by what is wrong."""
    made: dict[str, Illegal] = importlib.import_module(f"ops.{op.name}.illegal").illegal()
    return made


def entries(op: Op) -> dict[str, Callable[..., Any]]:
    """The functions that take the arguments of an op: its own, `explain` and `plan`."""
    return {
        "call": op.function,
        "explain": lambda *args, **kwargs: xattn.explain(op.function, *args, **kwargs),
        "plan": lambda *args, **kwargs: xattn.plan(op.function, *args, **kwargs),
    }


every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
every_op_with_gradients = pytest.mark.parametrize(
    "op", [pytest.param(op, id=name) for name, op in OPS.items() if op.vocabulary.grads]
)
every_sample = pytest.mark.parametrize(
    ("op", "name"), [pytest.param(op, name, id=f"{op.name}-{name}") for op in OPS.values() for name in samples(op)]
)


def for_all(*names: str) -> pytest.MarkDecorator:
    """Over every op, for what costs seconds an op: these stand for the others, which `make extended` has."""
    marks = {name: [] if name in names else [pytest.mark.extended] for name in OPS}
    return pytest.mark.parametrize("op", [pytest.param(op, id=name, marks=marks[name]) for name, op in OPS.items()])


every_entry = pytest.mark.parametrize("entry", ["call", "explain", "plan"])


def another(op: Op) -> Op:
    """Some other op."""
    return next(other for other in OPS.values() if other is not op)


def reference(op: str) -> xattn.Kernel[Any]:
    (kernel,) = (kernel for kernel in ReferenceBackend.kernels if kernel.op == op)
    return kernel


class Counting(xattn.Kernel[Any]):
    """Serves what `reference` serves, as it does, and counts."""

    planned: ClassVar[list[None]]  # one entry a plan: torch.compile traces an append, and not every version a number

    def __init_subclass__(cls) -> None:
        cls.planned = []

    @property
    def plans(self) -> int:
        return len(self.planned)

    def plan(self, request: xattn.Request) -> Plan:
        self.planned.append(None)
        return reference(self.op).plan(request)

    def kernel_name(self, request: xattn.Request) -> str:
        return "counting"


def kernel_of(op: Op, priority: int = 100, declares: dict[str, Any] | None = None, **members: Any) -> Counting:
    """A kernel of the op. declares: what its block has other than everything. members: of its class, of which each may
    override one."""
    (block,) = reference(op.name).capabilities
    block = replace(block, **{"priority": {"default": priority}, "fallback": False, **(declares or {})})
    made: type[Counting] = type("Made", (Counting,), {"op": op.name, "capabilities": (block,), **members})
    return made()


def raises(error: BaseException) -> Callable[..., Any]:
    """A function that raises, whatever it is given."""

    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function
