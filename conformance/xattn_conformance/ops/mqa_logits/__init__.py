"""`xattn.mqa_logits`: its cases, inputs and layout; goldens, noise and kernels are in `ops/logits.py`."""
