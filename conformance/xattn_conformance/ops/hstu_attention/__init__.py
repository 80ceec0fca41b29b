"""`xattn.hstu_attention`: its cases, inputs, goldens, noise and kernels that are wrong."""
