"""aiter's Triton kernels."""
