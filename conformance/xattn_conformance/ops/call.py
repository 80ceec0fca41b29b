"""A case as torch sees it: tensors and options, the call itself, and its gradients."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

import xattn
from xattn.cache import FormattedCache

# Runs an op with all its arguments: what a backend may replace (see `running/target.py`).
Execute = Callable[..., Any]


class NoSecondDerivativeError(Exception):
    """The backend says that its gradients cannot be differentiated."""


@dataclass(frozen=True)
class Call:
    """op: the name of a function of xattn. tensors: its tensor arguments by name. options: all others but backend.
    lists: arguments that are lists, of the tensors named.
    wanted: names of the tensors whose gradients are asked for. incoming: gradients of the results, by name.
    twice: whether the backward pass runs through one graph twice, the first time on other gradients that come in.
    along: directions by the name of a tensor, of all that are wanted. Where there are some, what comes back as
           gradients are those of the sum of all first ones times their directions: second derivatives.
    returns: names of what comes back in a tuple; None for a place that holds None. Empty: a tensor or AttentionOutput.
    writes: names of the tensors that the op writes to; it returns nothing, or what `returns` names. It gets copies, of
           all memory that they are views of; the results are what these hold after the call, and as "around" what
           none of them covers.
    format: of caches that the op gets as `FormattedCache`s made of k_cache and v_cache; None for plain ones.
    """

    op: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    wanted: tuple[str, ...] = ()
    incoming: Mapping[str, Tensor] = field(default_factory=dict)
    returns: tuple[str | None, ...] = ()
    twice: bool = False
    along: Mapping[str, Tensor] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    format: Literal["vllm", "asm"] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Every argument but backend, with gradients required where they are asked for."""
        return self._with(self._leaves())

    def _leaves(self) -> dict[str, Tensor]:
        return {
            name: tensor.detach().requires_grad_() if name in self.wanted else tensor
            for name, tensor in self.tensors.items()
        }

    def _with(self, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
        listed = {name for names in self.lists.values() for name in names}
        alone: dict[str, Any] = {name: tensor for name, tensor in leaves.items() if name not in listed}
        if self.format is not None:
            alone["k_cache"] = FormattedCache.made(alone["k_cache"], self.format, "k")
            alone["v_cache"] = FormattedCache.made(alone["v_cache"], self.format, "v")
        lists = {argument: [leaves[name] for name in names] for argument, names in self.lists.items()}
        return {**alone, **lists, **self.options}

    def with_tensors(self, **tensors: Tensor) -> Call:
        return replace(self, tensors={**self.tensors, **tensors})

    def run(self, backend: str, execute: Execute) -> dict[str, Tensor]:
        """Results by name, in their own layouts: out, lse where it is asked for, and dq, dk, ... likewise. Raises
        NoSecondDerivativeError where the backend refuses those along some directions."""
        leaves = self._leaves()
        if self.writes:
            return self._write(leaves, backend, execute)
        with torch.set_grad_enabled(bool(self.wanted)):
            results = self._named(execute(self.op, self._with(leaves), backend))
            if self.wanted:
                results |= self._gradients(results, [leaves[name] for name in self.wanted])
        return {name: tensor.detach() for name, tensor in results.items()}

    def _write(self, leaves: dict[str, Tensor], backend: str, execute: Execute) -> dict[str, Tensor]:
        memory: dict[int, tuple[Tensor, Tensor]] = {}
        for name in self.writes:
            tensor = self.tensors[name]
            key = tensor.untyped_storage().data_ptr()
            if key not in memory:
                whole = tensor.new_empty(0).set_(tensor.untyped_storage()).clone()
                memory[key] = whole, torch.ones_like(whole, dtype=torch.bool)
            whole, around = memory[key]
            place = tensor.shape, tensor.stride(), tensor.storage_offset()
            leaves[name] = whole.as_strided(*place)
            around.as_strided(*place).fill_(False)
        arguments = self._with(leaves)
        with torch.no_grad():
            returned = execute(self.op, arguments, backend)
        for name in self.writes:
            if isinstance(arguments[name], FormattedCache):
                leaves[name].copy_(arguments[name].numbers())
        found: dict[str, Tensor] = {}
        if self.returns:
            found = self._named((returned,))
        elif returned is not None:
            raise TypeError(f"the backend returned {type(returned).__name__}, want None")
        beside = [whole[around] for whole, around in memory.values()]
        # Memories of another dtype than the first have nothing beside what is written.
        around = torch.cat([each for each in beside if each.numel() > 0] or beside[:1])
        return {**found, **{name: leaves[name] for name in self.writes}, "around": around}

    def _gradients(self, results: Mapping[str, Tensor], wanted: list[Tensor]) -> dict[str, Tensor]:
        """0 where nothing that a gradient comes in for depends on an input, as lse on v."""
        given = {name: grad for name, grad in self.incoming.items() if results[name].requires_grad} or self.incoming
        sources = [results[name] for name in given]
        if self.twice:
            first = [grad / 2 for grad in given.values()]
            torch.autograd.grad(sources, wanted, first, retain_graph=True, allow_unused=True)
        grads = list(given.values())
        kept: dict[str, bool] = {"allow_unused": True, "materialize_grads": True}
        found = torch.autograd.grad(sources, wanted, grads, create_graph=bool(self.along), **kept)
        if self.along:
            products = [grad * self.along[name] for name, grad in zip(self.wanted, found, strict=True)]
            found = _again([each.sum() for each in products if each.requires_grad], wanted)
        return {f"d{name}": grad for name, grad in zip(self.wanted, found, strict=True)}

    def _named(self, returned: Any) -> dict[str, Tensor]:
        """Raises TypeError for what is not of the kind that the op returns."""
        if self.returns:
            if not isinstance(returned, tuple) or len(returned) != len(self.returns):
                raise TypeError(f"the backend returned {type(returned).__name__}, want a tuple of {len(self.returns)}")
            for name, each in zip(self.returns, returned, strict=True):
                if not (each is None if name is None else isinstance(each, Tensor)):
                    wanted = "None" if name is None else "a tensor"
                    raise TypeError(f"the backend returned {type(each).__name__} in a tuple, want {wanted}")
            return {name: each for name, each in zip(self.returns, returned, strict=True) if name is not None}
        if isinstance(returned, xattn.AttentionOutput):
            return {"out": returned.out, "lse": returned.lse}
        if isinstance(returned, Tensor):
            return {"out": returned}
        raise TypeError(f"the backend returned {type(returned).__name__}, want a tensor or xattn.AttentionOutput")


def _again(sums: list[Tensor], wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of first gradients. What came back as a constant has none, as it would beside another loss."""
    if not sums:
        return tuple(torch.zeros_like(each) for each in wanted)
    try:
        return torch.autograd.grad(sums, wanted, allow_unused=True, materialize_grads=True)
    except RuntimeError as error:
        if not re.search("derivative|differentiat", str(error)):
            raise
        raise NoSecondDerivativeError(str(error)) from error


def execute(op: str, arguments: Mapping[str, Any], backend: str) -> Any:
    """The public call, eagerly."""
    return getattr(xattn, op)(**arguments, backend=backend)
