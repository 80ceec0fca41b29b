"""Wrong kernels of merge_attention, and right ones."""
