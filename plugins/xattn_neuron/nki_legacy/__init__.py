"""The backend `nki-legacy`: AWS's kernels from before the NKI library."""
