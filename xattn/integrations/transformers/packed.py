"""Layers whose sequences lie one after the other, by `varlen_attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from transformers import PreTrainedModel

from xattn import varlen_attention
from xattn.errors import InvalidArgumentError
from xattn.integrations.transformers.described_mask import DescribedMask

# Models that do not hand their position_ids to the function that makes their mask, so that packed sequences see each
# other by transformers' own attention.
UNTOLD = {"GptOssModel", "OPTDecoder"}


@dataclass(frozen=True)
class Packed:
    """Where the sequences lie in a layer's rows, as `varlen_attention` has it, and what holds inside each."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int | None
    max_seqlen_k: int | None
    causal: bool
    window: tuple[int, int] | None

    @classmethod
    def of_mask(cls, mask: DescribedMask) -> Packed:
        """Of the mask that `position_ids` made."""
        assert mask.sequences is not None
        cu_seqlens, longest = mask.sequences
        return cls(cu_seqlens, cu_seqlens, longest, longest, True, _window(mask))

    @classmethod
    def of_arguments(
        cls,
        cu_seqlens: tuple[Tensor | None, Tensor | None],
        max_seqlens: tuple[Any, Any],
        causal: bool,
        window: tuple[int, int] | None,
    ) -> Packed:
        """Of cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k."""
        for name, given in zip(("cu_seq_lens_q", "cu_seq_lens_k"), cu_seqlens, strict=True):
            if not isinstance(given, Tensor):
                got = "None beside the other" if given is None else type(given).__name__
                raise InvalidArgumentError(name, got, "a tensor: both are given, or none")
        first, second = (given.to(torch.int32) for given in cu_seqlens if given is not None)
        max_q, max_k = (given if isinstance(given, int) else None for given in max_seqlens)
        return cls(first, second, max_q, max_k, causal, window)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
        """q, k, v and the result are (batch, seqlen, nheads, headdim): batch rows follow one another."""
        batch, seqlen = q.shape[:2]
        out: Tensor = varlen_attention(
            q.flatten(0, 1),
            k.flatten(0, 1),
            v.flatten(0, 1),
            self.cu_seqlens_q,
            self.cu_seqlens_k,
            max_seqlen_q=self.max_seqlen_q,
            max_seqlen_k=self.max_seqlen_k,
            causal=self.causal,
            window=self.window,
            **arguments,
        )
        return out.view(batch, seqlen, *out.shape[1:])


def bands(mask: DescribedMask, cu_seqlens: Tensor | None) -> tuple[bool, tuple[int, int] | None]:
    """causal and window of each sequence of a mask that stands beside cu_seq_lens.

    Raises InvalidArgumentError for a mask that says more than causality over all rows, or than position_ids of the same
    sequences."""
    if mask.sequences is not None:
        told = mask.sequences[0]
        # On a device both are trusted: to compare them would wait for it, in each layer.
        if isinstance(cu_seqlens, Tensor) and cu_seqlens.device.type == "cpu" and cu_seqlens.tolist() != told.tolist():
            hint = "Sequences begin where position_ids do. Pass one of the two."
            raise InvalidArgumentError(
                "cu_seq_lens_q", str(cu_seqlens.tolist()), f"{told.tolist()}, as position_ids say", hint
            )
    elif mask.visible is not None or mask.offset not in (None, 0) or (mask.offset == 0 and len(set(mask.sizes)) > 1):
        hint = (
            "Padding, caches, chunks and masks of other kinds do not go with it: pass packed sequences by position_ids."
        )
        raise InvalidArgumentError("cu_seq_lens_q", "sequences beside another mask", "a causal mask or none", hint)
    return mask.offset is not None, _window(mask)


def tell(model: PreTrainedModel, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """A hook before the forward of a model in UNTOLD: packed position_ids become cu_seq_lens, by transformers' rule
    for the other models: where there is neither a mask nor a cache."""
    positions = kwargs.get("position_ids")
    cached = kwargs.get("use_cache")
    if cached is None:
        cached = model.config.use_cache
    given = [kwargs.get(name) for name in ("attention_mask", "cache", "past_key_values", "cu_seq_lens_q")]
    if not isinstance(positions, Tensor) or positions.dim() != 2 or cached or is_compiling():
        return None
    if any(each is not None for each in given):
        return None
    begins = torch.nn.functional.pad(positions.diff() != 1, (1, 0), value=True).flatten().nonzero().flatten()
    if begins.shape[0] == positions.shape[0]:
        return None
    cu_seqlens = torch.nn.functional.pad(begins, (0, 1), value=positions.numel()).to(torch.int32)
    longest = int(cu_seqlens.diff().max())
    told = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "max_length_q": longest, "max_length_k": longest}
    return args, {**kwargs, **told}


def _window(mask: DescribedMask) -> tuple[int, int] | None:
    return None if mask.window is None else (mask.window - 1, 0)
