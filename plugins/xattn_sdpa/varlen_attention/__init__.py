"""`varlen_attention` by the engines of `attention`, a run of equal sequences at a time."""
