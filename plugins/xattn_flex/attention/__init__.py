"""`attention` by torch's flex_attention."""
