"""The op `apply_rotary`: its arguments, the choice of a backend, and its meaning in plain PyTorch."""
