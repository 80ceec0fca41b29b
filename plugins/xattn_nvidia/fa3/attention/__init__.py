"""`attention` by FlashAttention-3."""
