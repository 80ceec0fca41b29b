"""aiter's public attention functions: CK, ASM v3 and the rest, as aiter itself picks."""
