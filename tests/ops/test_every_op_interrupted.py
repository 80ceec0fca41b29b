"""Over the table of ops: what a plugin raises is contained, of whatever class; what arrives while its code runs and is
not its own comes through, and nothing of it is remembered."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ops.conftest import Mine
from ops.every_op import entries, every_op, kernel_of, raises, samples
from sample import equal
from support import Load, backend_of, plugin, stranger

import xattn
from xattn.dispatch.op import Op


class Skipped(BaseException):
    """As pytest's own, which is no Exception."""


class TimedOutError(Exception):
    """What a handler of SIGALRM raises."""


@every_op
@pytest.mark.parametrize("member", ["reasons", "block", "limits", "kernel_name"])
def test_an_exception_of_any_class_is_the_plugins(op: Op, member: str, mine: Mine) -> None:
    broken: dict[str, Any] = {member: raises(Skipped("no driver"))}
    mine(op, **broken)
    sample = samples(op)["plain"]
    want = sample.of(op.function, backend="reference")
    if member == "kernel_name":
        explained = sample.of(entries(op)["explain"])
        assert any("kernel_name() raised Skipped: no driver" in note for note in explained.notes)
    else:
        with pytest.warns(xattn.BrokenBackendWarning, match="Skipped: no driver"):
            assert equal(sample.of(op.function), want)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import pytest\npytest.skip('no driver', allow_module_level=True)", "failed to load: Skipped: "),
        (
            "import pytest, xattn\n@xattn.hookimpl\ndef xattn_backends(): pytest.skip('no driver')",
            "xattn_backends() raised Skipped: ",
        ),
    ],
    ids=["import", "hook"],
)
def test_a_plugin_that_skips_takes_nobody_down(source: str, said: str, strangers: Any, load: Load) -> None:
    load(stranger(strangers, "skips", source))
    (problem,) = xattn.info()["problems"]
    assert said in problem
    assert [each["name"] for each in xattn.info()["backends"]] == ["reference"]


@pytest.fixture
def handle() -> Iterator[Callable[[Any], None]]:
    """Set the handler of SIGUSR1, for one test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: (signal.signal(signal.SIGUSR1, handler), None)[1]
    signal.signal(signal.SIGUSR1, before)


class Handlers:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def method(self, number: int, frame: Any) -> None:
        raise self.error

    def __call__(self, number: int, frame: Any) -> None:
        raise self.error


HANDLERS: dict[str, Callable[[BaseException], Callable[..., Any]]] = {
    "function": raises,
    "method": lambda error: Handlers(error).method,
    "partial": lambda error: functools.partial(Handlers(error).method),
    "object": Handlers,
}


@every_op
@pytest.mark.parametrize("member", ["reasons", "block", "limits"])
@pytest.mark.parametrize("error", [TimedOutError("5 s"), SystemExit(143), Skipped("timeout")], ids=repr)
@pytest.mark.parametrize("handler", HANDLERS)
def test_what_the_handler_of_a_signal_raises_comes_through(
    op: Op, member: str, error: BaseException, handler: str, load: Load, handle: Callable[[Any], None]
) -> None:
    handle(HANDLERS[handler](error))
    honest = getattr(kernel_of(op), member)
    arrived: list[bool] = []

    def interrupted(self: Any, request: xattn.Request) -> Any:
        if not arrived:
            arrived.append(True)
            signal.raise_signal(signal.SIGUSR1)
        return honest(request)

    members: dict[str, Any] = {member: interrupted}
    load([plugin("mine-plugin", backend_of("mine", kernel_of(op, **members)))])
    sample = samples(op)["plain"]
    with pytest.raises(type(error)) as caught:
        sample.of(op.function)
    assert caught.value is error
    sample.of(op.function)
    assert sample.of(entries(op)["explain"]).backend == "mine"


@every_op
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=repr)
def test_nobodys_own_comes_through(op: Op, error: BaseException, mine: Mine) -> None:
    mine(op, reasons=raises(error))
    for entry in entries(op).values():
        with pytest.raises(type(error)):
            samples(op)["plain"].of(entry)
