"""The state of the process that a call must leave as it found it."""

from __future__ import annotations

import os
from typing import Any

import torch

# Half of float32's smallest normal number: 0 where subnormal numbers are flushed.
_SUBNORMAL = 2.0**-127


def look(device: str, random: bool) -> dict[str, Any]:
    """By name, comparable. random: whether random numbers may be drawn, so that the generators are left out."""
    found: dict[str, Any] = {
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "the grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "the treatment of subnormal numbers": float(torch.full((), _SUBNORMAL) * 1.0),
        "the deterministic flags": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "the precision of products": torch.get_float32_matmul_precision(),
        "torch's choice of kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        ),
        "the working directory": os.getcwd(),
        "the environment": dict(os.environ),
    }
    if not random:
        found["the random numbers"] = torch.get_rng_state().numpy().tobytes()
        if torch.device(device).type == "cuda":
            found["the random numbers of the device"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name, value in before.items() if after[name] != value]
