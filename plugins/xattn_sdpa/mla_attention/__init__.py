"""`mla_attention` by the `sdpa` backend."""
