"""`attention` by two of aiter's Triton kernels: `mha.flash_attn_func` and `unified_attention`."""
