"""Wrong kernels of hstu_attention, and right ones."""
