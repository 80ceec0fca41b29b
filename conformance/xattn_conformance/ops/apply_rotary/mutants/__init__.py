"""Wrong kernels of apply_rotary, and right ones."""
