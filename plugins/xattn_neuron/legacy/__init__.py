"""The flash_fwd kernels from before the NKI library."""
