"""The conformance suite of xattn: one set of golden outputs for every backend, and tolerances that follow from what a
backend declares about its arithmetic."""
