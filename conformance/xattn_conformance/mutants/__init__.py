"""Kernels in NumPy, right ones and wrong ones: what the comparison must tell apart."""
