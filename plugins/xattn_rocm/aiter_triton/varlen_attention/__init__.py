"""`varlen_attention` by aiter's Triton MHA of packed sequences."""
