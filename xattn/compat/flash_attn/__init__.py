"""The functions of flash-attn 2.8, on any backend of xattn:

    from xattn.compat.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
    from xattn.compat.flash_attn.bert_padding import pad_input, unpad_input

in place of `flash_attn` and `flash_attn.bert_padding`. Names, positions, defaults and what comes back are flash-attn's
(https://github.com/Dao-AILab/flash-attention/blob/v2.8.3/flash_attn/flash_attn_interface.py), the lse of a query that
sees no key, +inf, included. What differs:

- Tensors may have any dtype, size and device that a backend of xattn serves.
- What xattn has no word for raises InvalidArgumentError: dropout and probabilities in packed calls, slopes <= 0.
- `num_splits` says how to compute, not what: it is left to the backend.
- The probabilities that `return_attn_probs` returns third are an empty tensor, as they are in flash-attn without
  dropout; with dropout they are an error.
"""

from xattn.compat.flash_attn.dense import flash_attn_func, flash_attn_kvpacked_func, flash_attn_qkvpacked_func
from xattn.compat.flash_attn.kvcache import flash_attn_with_kvcache
from xattn.compat.flash_attn.varlen import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
