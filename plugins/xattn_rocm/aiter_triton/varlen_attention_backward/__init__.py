"""`varlen_attention_backward` by aiter's Triton MHA of packed sequences."""
