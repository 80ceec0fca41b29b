"""`hstu_attention` by aiter's Triton HSTU."""
