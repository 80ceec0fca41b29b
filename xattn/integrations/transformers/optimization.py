"""Models whose attention modules run the forwards of `layers`: at load, and once they are there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from torch import nn
from transformers import PreTrainedModel

from xattn.errors import InvalidArgumentError
from xattn.integrations.transformers import served
from xattn.integrations.transformers.layers import LAYERS, Forward, forward_of

# Set beside a forward of ours, to know it by.
_MARK = "_xattn_bsnh"


def optimize(model: PreTrainedModel) -> None:
    modules = served.callers(model)
    if not modules:
        raise InvalidArgumentError("model", f"{type(model).__name__}, which has none", "a model with attention modules")
    # All, before any is changed.
    forwards = [(module, _forward_for(name, module)) for name, module in modules.items()]
    for module, forward in forwards:
        if forward is not None:
            module.forward = MethodType(forward, module)


def restore(model: nn.Module) -> None:
    for module in model.modules():
        if "forward" in vars(module) and getattr(module.forward, _MARK, False):
            del module.forward


def _forward_for(name: str, module: nn.Module) -> Forward | None:
    """None where it has one already."""
    if getattr(module.forward, _MARK, False):
        return None
    if "forward" in vars(module):
        hint = "Optimize first: what wraps forwards (accelerate's hooks) comes afterwards."
        raise InvalidArgumentError("model", f"{name}, whose forward was exchanged", "the forward of its class", hint)
    return _marked(forward_of(type(module)))


def _marked(forward: Forward) -> Forward:
    setattr(forward, _MARK, True)
    return forward


@contextmanager
def optimized() -> Iterator[None]:
    try:
        from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
    except ImportError as error:
        raise ImportError("this transformers cannot exchange classes: load the model, then optimize(model)") from error
    mapping = {}
    for name, (family, _) in LAYERS.items():
        kind = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)
        mapping[name] = type(name, (kind,), {"forward": _marked(forward_of(kind)), "__module__": __name__})
    register_patch_mapping(mapping)
    try:
        yield
    finally:
        unregister_patch_mapping(list(mapping))
