"""`xattn.merge_attention`: its cases, inputs, goldens and wrong kernels."""
