"""`attention` by the `flash_fwd` of neuronx-cc or of neuronx-distributed-inference, and `flash_attn_bwd`."""
