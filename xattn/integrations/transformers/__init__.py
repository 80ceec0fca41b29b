"""`attn_implementation="xattn"` in Hugging Face transformers. docs/transformers.md says what maps to what.

from xattn.integrations.transformers import register

register()
model = AutoModel.from_pretrained(path, attn_implementation="xattn")
"""

from __future__ import annotations

from xattn.errors import InvalidArgumentError

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
