"""`xattn.varlen_attention_backward`: gradients of packed sequences from what a forward call returned."""
