"""`xattn.apply_rotary`: its cases, inputs and goldens."""
