"""transformers' continuous batching, whose gate lets implementations of its own through alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers

from xattn.integrations.transformers import served

# Where the gate is one method, and attention gets q, gathered keys and cu_seq_lens.
_OLDEST = (5, 24)


@contextmanager
def opened() -> Iterator[None]:
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        raise ImportError(f"continuous batching by xattn needs transformers >= {wanted}, here is {version}")
    from transformers.generation.continuous_batching import continuous_api

    manager: Any = continuous_api.ContinuousBatchingManager
    gate = getattr(manager, "switch_to_cb_friendly_attn", None)
    if gate is None:
        raise ImportError(f"transformers {transformers.__version__} chooses continuous batching's attention elsewhere")

    def switch_to_cb_friendly_attn(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if model.config._attn_implementation not in served.NAMES:
            gate(self, model, *args, **kwargs)

    manager.switch_to_cb_friendly_attn = switch_to_cb_friendly_attn
    try:
        yield
    finally:
        manager.switch_to_cb_friendly_attn = gate
