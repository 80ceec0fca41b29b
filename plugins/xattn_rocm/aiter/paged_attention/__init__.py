"""`paged_attention` by aiter's CK kernel of pages."""
