"""The backend `aiter`: aiter's public functions, which pick among CK, ASM and other kernels themselves."""
