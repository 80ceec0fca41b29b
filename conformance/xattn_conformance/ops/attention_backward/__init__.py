"""`xattn.attention_backward`: the share of some keys in attention's gradients."""
