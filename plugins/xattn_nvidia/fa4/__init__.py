"""The backend `fa4`: FlashAttention-4, in CuTe DSL, whose kernels are compiled when they are first called."""
