"""`mqa_logits` and `paged_mqa_logits` of torch's operators."""
