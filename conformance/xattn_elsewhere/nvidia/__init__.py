"""NVIDIA's kernels where NVIDIA's cards are not: stand-ins."""
