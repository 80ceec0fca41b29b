"""`paged_attention` by the `sdpa` backend."""
