"""What the comparison must tell apart: kernels of every op, right ones and wrong ones."""
