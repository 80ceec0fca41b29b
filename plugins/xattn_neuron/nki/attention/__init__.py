"""`attention` by the NKI library's `attention_cte` and `attention_bwd`."""
