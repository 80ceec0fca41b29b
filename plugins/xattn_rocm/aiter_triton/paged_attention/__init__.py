"""`paged_attention` by aiter's `unified_attention`."""
