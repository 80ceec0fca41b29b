"""xattn in Hugging Face diffusers. docs/libraries.md says which models need it.

from xattn.integrations.diffusers import use

use(pipe.transformer)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xattn.errors import InvalidArgumentError

if TYPE_CHECKING:
    from diffusers import ModelMixin

_OLDEST = (0, 42)


def register() -> None:
    """Make "xattn" a name of an attention backend in diffusers: for `model.set_attention_backend`, `attention_backend`
    and the other ways of choosing that it has. May be called again.

    Raises ImportError without diffusers >= 0.42.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("xattn's adapter needs diffusers: pip install diffusers") from error
    if tuple(int(part) for part in diffusers.__version__.split(".")[:2]) < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        raise ImportError(f"xattn's adapter needs diffusers >= {wanted}, here is {diffusers.__version__}")
    from xattn.integrations.diffusers import backend

    backend.register()


def use(model: ModelMixin) -> None:
    """Make every attention module of a model attend by xattn, and of this model alone.

    diffusers' own `set_attention_backend` changes the backend of every model in the process that has none of its own,
    and changes nothing in a model whose modules call torch's function themselves, such as Stable Diffusion 3's: there
    `use` puts a processor that calls xattn. `model.reset_attention_backend()` and `model.set_attn_processor()` undo it.

    Raises ImportError as `register`, and InvalidArgumentError for a model without attention modules, or with some that
    cannot be served, naming them; the model is then as it was.
    """
    register()
    from xattn.integrations.diffusers.backend import NAME, member
    from xattn.integrations.diffusers.joint import JOINT, JointProcessor

    modules = list(_attention_modules(model))
    unknown = {type(module.processor).__name__ for module in modules if not _is_served(module.processor, JOINT)}
    if not modules or unknown:
        got = f"{type(model).__name__} with {', '.join(sorted(unknown)) or 'no attention module'}"
        hint = "xattn.integrations.torch.install() serves what calls F.scaled_dot_product_attention itself."
        raise InvalidArgumentError("model", got, f"processors that know attention backends ({NAME} is one)", hint)
    for module in modules:
        if type(module.processor) is JOINT:
            module.set_processor(JointProcessor())
        module.processor._attention_backend = member()


def _attention_modules(model: ModelMixin) -> Iterator[Any]:
    """The modules that attend: those with a processor."""
    return (module for module in model.modules() if getattr(module, "processor", None) is not None)


def _is_served(processor: object, joint: type) -> bool:
    return hasattr(processor, "_attention_backend") or type(processor) is joint
