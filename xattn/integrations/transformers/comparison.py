"""A model by xattn beside the same model by eager attention."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

from xattn.errors import InvalidArgumentError
from xattn.integrations.transformers import served, use

_NAME = "xattn"
_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Layer:
    """One attention module.

    calls: how often it called xattn. difference: the largest absolute difference of its outputs from those by eager
    attention, divided by the largest absolute value of these. tolerance: what passes.
    """

    name: str
    calls: int
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        # A NaN is not.
        return self.calls > 0 and self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "DIFFERS" if self.calls else "NEVER CALLED"
        calls = f"{self.calls} call" + ("" if self.calls == 1 else "s")
        return f"{self.name}: {calls}, off by {self.difference:.1e} (<= {self.tolerance:.0e}): {verdict}"


@dataclass(frozen=True)
class Comparison:
    """What `check` found: the modules that call an implementation, in the model's order, and the names of those that
    compute attention by themselves, which xattn does not touch."""

    layers: tuple[Layer, ...]
    untouched: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return all(layer.ok for layer in self.layers)

    def __str__(self) -> str:
        lines = [str(layer) for layer in self.layers]
        lines += [f"{name}: computes attention by itself, not compared" for name in self.untouched]
        wrong = sum(not layer.ok for layer in self.layers)
        lines.append(f"{len(self.layers)} attention modules, {wrong} not as with eager attention")
        return "\n".join(lines)


def compare(model: PreTrainedModel, inputs: Mapping[str, Any], tolerance: float | None) -> Comparison:
    if model.training:
        raise InvalidArgumentError("model", "training mode", "model.eval()", "Dropout would make the two differ.")
    modules = served.callers(model)
    with _restored(model):
        use(model, _NAME)
        with _counted() as calls:
            ours = _outputs(model, modules, inputs)
        model.set_attn_implementation("eager")
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                served.check_assigned(part, "eager")
        eager = _outputs(model, modules, inputs)
    padding = inputs.get("attention_mask")
    layers = []
    for name, module in modules.items():
        pairs = list(zip(ours[name], eager[name], strict=True))
        allowed = tolerance
        if allowed is None:
            allowed = max((_TOLERANCES.get(expected.dtype, 1e-4) for _, expected in pairs), default=1e-4)
        difference = max((_difference(got, expected, padding) for got, expected in pairs), default=0.0)
        layers.append(Layer(name, calls[module], difference, allowed))
    return Comparison(tuple(layers), tuple(_untouched(model, modules)))


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[None]:
    """Give each part of the model back the implementation that it had."""
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    for config in list(configs.values()):
        for name in config.sub_configs:
            part = getattr(config, name, None)
            if part is not None:
                configs[id(part)] = part
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


@contextmanager
def _counted() -> Iterator[Counter[nn.Module]]:
    """Count the calls of our attention function by module."""
    calls: Counter[nn.Module] = Counter()
    functions: dict[str, Any] = AttentionInterface._global_mapping
    forward = functions[_NAME]

    def counting(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls[module] += 1
        return forward(module, *args, **kwargs)

    functions[_NAME] = counting
    try:
        yield calls
    finally:
        functions[_NAME] = forward


@torch.no_grad()
def _outputs(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, list[Tensor]]:
    """What each module returns, call by call."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in modules}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name].append((output[0] if isinstance(output, tuple) else output).detach().clone())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        # A call fills the caches that it is given.
        model(**{name: copy.deepcopy(item) if isinstance(item, Cache) else item for name, item in inputs.items()})
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _difference(got: Tensor, expected: Tensor, padding: Any) -> float:
    if isinstance(padding, Tensor) and padding.dim() == 2 and got.shape[:2] == padding.shape:
        rows = padding.bool().to(got.device)
        got, expected = got[rows], expected[rows]
    if got.numel() == 0:
        return 0.0
    largest = float(expected.abs().max())
    return float((got - expected).abs().max()) / (largest if largest > 0 else 1.0)


def _untouched(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Attention modules with no caller in them, above or below."""
    for name, module in model.named_modules():
        related = any(name.startswith(f"{other}.") or f"{other}.".startswith(f"{name}.") for other in modules)
        if "Attention" in type(module).__name__ and not related:
            yield name
