"""Philox, rounding, and the families of inputs."""
