"""`mla_attention` by aiter's Triton kernels."""
