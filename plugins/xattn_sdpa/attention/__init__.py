"""`attention` by torch's fused kernels, or in blocks of matmuls where none of them serves."""
