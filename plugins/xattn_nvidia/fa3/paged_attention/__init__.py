"""`paged_attention` by FlashAttention-3."""
