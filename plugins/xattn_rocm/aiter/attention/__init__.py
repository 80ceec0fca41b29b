"""`attention` by aiter's `flash_attn_func` and `flash_attn_varlen_func`."""
