"""`varlen_attention` by FlashAttention-3."""
