"""What several of the backends need around kernels of the same make: FlashAttention-3 and -4, and cuDNN's."""
