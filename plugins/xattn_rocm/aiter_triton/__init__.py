"""The backend `aiter-triton`: aiter's Triton kernels."""
