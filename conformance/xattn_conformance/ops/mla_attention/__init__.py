"""`xattn.mla_attention`: its cases, inputs and layout; the rest is attention's, and that of pages."""
