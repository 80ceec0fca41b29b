"""Attention kernels in NumPy, right ones and wrong ones."""
