"""`xattn.attention`: its cases, inputs and goldens."""
