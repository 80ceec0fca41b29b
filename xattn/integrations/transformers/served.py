"""Which models and calls can be served: transformers accepts any registered name for any model, and leaves it at that
where the model computes attention by itself."""

from __future__ import annotations

import functools
import inspect
import sys
from types import ModuleType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from xattn.errors import InvalidArgumentError
from xattn.integrations.transformers import falcon, packed

# Names under which xattn was registered.
NAMES: set[str] = set()


def check_class(model: type[PreTrainedModel], name: str) -> None:
    """Raise InvalidArgumentError for a class of models that never calls the implementation `name`."""
    for kind in model.__mro__[: model.__mro__.index(PreTrainedModel)]:
        module = sys.modules.get(kind.__module__)
        if module is not None:
            _check_module(module, model.__name__, name)


def check_assigned(part: PreTrainedModel, name: str) -> None:
    """Raise InvalidArgumentError for a part of a model that has another implementation than `name`."""
    got = part.config._attn_implementation
    if got != name:
        hint = f'It takes one when it is made: from_pretrained(..., attn_implementation="{name}").'
        got = f"{name} for {type(part).__name__}, which stays with {got}"
        raise InvalidArgumentError("attn_implementation", got, "a model that can change it", hint)


def callers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that call an implementation, by name."""
    return {name: part for name, part in model.named_modules() if _calls(type(part))}


def _calls(kind: type[nn.Module]) -> bool:
    """Whether a class of modules calls an implementation: its code is the only place that says so."""
    if issubclass(kind, PreTrainedModel):  # Its own methods check the names of implementations.
        return False
    if any(base.__module__ == falcon.MODELING and base.__name__ == "FalconAttention" for base in kind.__mro__):
        return True
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    functions = [inspect.unwrap(item) for base in bases for item in vars(base).values() if callable(item)]
    codes = [item.__code__ for item in functions if inspect.isfunction(item)]
    return any("ALL_ATTENTION_FUNCTIONS" in code.co_names for code in codes)


def _check_module(module: ModuleType, model: str, name: str) -> None:
    if module.__name__ == falcon.MODELING:
        falcon.serve(module, name)
        return
    hint = 'Use "eager"; parts of a model are named by a dict, {"text_config": "xattn"} for example.'
    for label, table in vars(module).items():
        if label.endswith("_ATTENTION_CLASSES") and isinstance(table, dict) and name not in table:
            got = f"{name} for {model}, whose {label} is a fixed table"
            raise InvalidArgumentError("attn_implementation", got, f"one of {', '.join(table)}", hint)
    if _computes_attention(module):
        got = f"{name} for {model}, which computes attention by itself"
        raise InvalidArgumentError("attn_implementation", got, "a model that calls an implementation", hint)


def _computes_attention(module: ModuleType) -> bool:
    """Whether it has attention modules, and none that calls an implementation."""
    if module.__name__.endswith(("modeling_timm_wrapper", "modeling_timm_backbone")):
        return True
    kinds = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, nn.Module)]
    own = [kind for kind in kinds if kind.__module__ == module.__name__]
    return any("Attention" in kind.__name__ for kind in own) and not any(_calls(kind) for kind in own)


def watch(name: str) -> None:
    """Let transformers' models ask `check_class` when they are made with `name`, or get it later."""
    if not NAMES:
        _watch_models()
    NAMES.add(name)


def _watch_models() -> None:
    choose = PreTrainedModel.get_correct_attn_implementation
    assign = PreTrainedModel.set_attn_implementation

    @functools.wraps(choose)
    def get_correct_attn_implementation(self: Any, requested_attention: Any, *args: Any, **kwargs: Any) -> Any:
        if requested_attention in NAMES:
            check_class(type(self), requested_attention)
            _watch_calls(self)
        return choose(self, requested_attention, *args, **kwargs)

    @functools.wraps(assign)
    def set_attn_implementation(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = isinstance(attn_implementation, str) and attn_implementation in NAMES
        parts = [part for part in self.modules() if isinstance(part, PreTrainedModel)] if wanted else []
        for part in parts:
            check_class(type(part), attn_implementation)
        assign(self, attn_implementation, *args, **kwargs)
        # transformers only logs a warning for a part that does not follow.
        for part in parts:
            check_assigned(part, attn_implementation)
            _watch_calls(part)

    PreTrainedModel.get_correct_attn_implementation = get_correct_attn_implementation  # type: ignore[method-assign]
    PreTrainedModel.set_attn_implementation = set_attn_implementation  # type: ignore[method-assign]


def _watch_calls(model: PreTrainedModel) -> None:
    if _refuse_weights not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_refuse_weights, with_kwargs=True)
        if type(model).__name__ in packed.UNTOLD:
            model.register_forward_pre_hook(_tell_sequences, with_kwargs=True)


def _tell_sequences(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    return packed.tell(model, args, kwargs) if model.config._attn_implementation in NAMES else None


def _refuse_weights(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> None:
    """Attention weights exist in no kernel. Here, because not every model tells its layers that they are asked for."""
    asked = kwargs.get("output_attentions")
    if asked is None:
        asked = getattr(model.config, "output_attentions", False)
    if asked and model.config._attn_implementation in NAMES:
        raise InvalidArgumentError("output_attentions", "True", "False", 'Use attn_implementation="eager" to see them.')
