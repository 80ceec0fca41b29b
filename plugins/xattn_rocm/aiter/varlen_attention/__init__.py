"""`varlen_attention` by aiter's `flash_attn_varlen_func`."""
