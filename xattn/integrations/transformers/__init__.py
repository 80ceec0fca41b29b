"""`attn_implementation="xattn"` in Hugging Face transformers. docs/transformers.md says what maps to what.

from xattn.integrations.transformers import check, register, use

register()
model = AutoModel.from_pretrained(path, attn_implementation="xattn")

use(model)  # or so, for a model that is there already
check(model, inputs)  # compares with eager attention, layer by layer
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from xattn.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from xattn.integrations.transformers.comparison import Comparison

_OLDEST = (4, 57)

# transformers reads meaning into these parts of a name. Above all "flash": it then wants a flash-attention kernel of
# that name when the model is made, may exchange the name for another, and vision models pass cu_seq_lens in place of
# a mask. "/" and ":" name a kernel of the hub, "|" is the paged cache.
_TAKEN = ("flash", "flex_attention", "sdpa", "eager", "|", "/", ":")


def register(name: str = "xattn") -> None:
    """Make xattn an attention implementation of transformers, under `name`.

    Registers both halves: the attention function, and the mask function without which transformers would pass no mask
    at all, padding and causality included. From then on a model that never calls an implementation raises
    InvalidArgumentError when it is made with this name, instead of ignoring it. Affects nobody who does not ask for
    the name. May be called again.

    Raises ImportError without transformers >= 4.57, InvalidArgumentError for a name that means something else there.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("xattn's adapter needs transformers: pip install 'xattn[hf]'") from error
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        raise ImportError(
            f"xattn's adapter needs transformers >= {wanted}, here is {transformers.__version__}: "
            "pip install -U 'xattn[hf]'"
        )
    for part in _TAKEN:
        if part in name:
            hint = f'transformers takes a name with "{part}" in it for an implementation of its own.'
            raise InvalidArgumentError("name", repr(name), f'a name without "{part}"', hint)

    from xattn.integrations.transformers import served
    from xattn.integrations.transformers.attention import attention_forward
    from xattn.integrations.transformers.mask import attention_mask

    served.watch(name)
    transformers.AttentionInterface.register(name, attention_forward)
    transformers.AttentionMaskInterface.register(name, attention_mask)


def use(model: PreTrainedModel, name: str = "xattn") -> None:
    """Make a model that exists attend by xattn, in all its parts. Registers `name` first.

    Raises what `register` raises, and InvalidArgumentError for a model that cannot be served, naming the class: one
    that computes attention by itself in some part, takes its implementation only when it is made, or has no attention.
    """
    register(name)
    from xattn.integrations.transformers import served

    if not served.callers(model):
        # The class says more about a model that computes attention by itself.
        served.check_class(type(model), name)
        got = f"{name} for {type(model).__name__}, no module of which calls one"
        raise InvalidArgumentError("attn_implementation", got, "a model with attention")
    model.set_attn_implementation(name)


def check(model: PreTrainedModel, inputs: Mapping[str, Any], *, tolerance: float | None = None) -> Comparison:
    """Run a model by xattn and by eager attention, compare the output of each attention module, and print the result.

    inputs: the keyword arguments of one call of the model. Where an "attention_mask" of two dimensions is among them,
        its padding is left out of the comparison: there xattn gives 0 and eager attention a mean of all values.
    tolerance: the largest difference that passes, relative to the largest value of a module's eager output. None:
        1e-4 for float32 and float64, 1e-2 for float16, 5e-2 for bfloat16. Differences add up from layer to layer.

    The model keeps the implementation that it had. Eager attention is no judge where it is wrong itself
    (docs/transformers.md names the cases).

    Raises InvalidArgumentError as `use` does, for a model that cannot change to eager attention, and for a model in
    training mode, where dropout would make the two differ.
    """
    register()
    from xattn.integrations.transformers import comparison

    compared = comparison.compare(model, inputs, tolerance)
    print(compared)
    return compared


def make_cache(model: PreTrainedModel, max_seqlen: int) -> Cache:
    """A cache for `model.generate(..., past_key_values=cache)` and for calls of the model: full layers, sliding ones,
    and models that have both.

    A step writes its own keys and values into memory that stays where it is, and reads views; the past is not copied.
    One that slides has room for twice its window, and moves the window to the front when that is full. Layers that are
    more than keys and values (states of linear attention) and an encoder's keys stay as transformers makes them. Any
    attention implementation works. It keeps no graph: keys that want a gradient raise InvalidArgumentError.

    max_seqlen: tokens in all, prompt and new ones. More raise InvalidArgumentError.

    Raises InvalidArgumentError for a model that has a cache of its own.
    """
    register()
    from xattn.integrations.transformers import cache

    return cache.make(model, max_seqlen)


def continuous_batching() -> AbstractContextManager[None]:
    """`with continuous_batching(): model.generate_batch(...)`: inside, transformers' continuous batching takes models
    that attend by xattn; for all others it is what it was. Each step is one call of `xattn.varlen_attention` a layer.

    Raises ImportError for a transformers that was not read: before 5.24, or with another gate.
    """
    register()
    from xattn.integrations.transformers import batching

    return batching.opened()


def optimize(model: PreTrainedModel) -> None:
    """Let the attention modules of a model keep q, k and v in BSNH from the projections to the output: rotated by
    `xattn.apply_rotary`, with no concatenation and no copy, and handed as views to caches and to the model's attention
    implementation, whichever it is. `restore(model)` undoes it.

    Outputs, caches and gradients stay what they were, but for the rounding of the rotation: once instead of three
    times, which tells in 16-bit models.

    Raises InvalidArgumentError, naming the class, for a model with an attention module that is not known
    (docs/transformers.md lists those that are), whose forward is not the one that was read, or was exchanged by someone
    else; nothing is changed then. A part of a model can be given: `optimize(model.language_model)`. ImportError as
    `register`.
    """
    register()
    from xattn.integrations.transformers import optimization

    optimization.optimize(model)


def restore(model: PreTrainedModel) -> None:
    """Give the attention modules of a model their own forwards back. A model made inside `optimized()` keeps its
    classes."""
    from xattn.integrations.transformers import optimization

    optimization.restore(model)


def optimized() -> AbstractContextManager[None]:
    """For models that are loaded inside, `with optimized(): model = AutoModel.from_pretrained(...)`: their attention
    modules are made as subclasses with the forwards of `optimize`, whatever the family; other modules are left alone.

    Raises ImportError for a transformers that cannot exchange classes at load: there, load first, then optimize(model).
    """
    register()
    from xattn.integrations.transformers import optimization

    return optimization.optimized()
