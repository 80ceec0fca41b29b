"""`xattn.paged_attention`: its cases, inputs and layout; the rest is attention's."""
