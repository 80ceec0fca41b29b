"""What contradicts the contract of apply_rotary, beside the calls of illegal.py."""

from __future__ import annotations

import pytest
import torch
from ops.apply_rotary.rotary_calls import tensors

import xattn

Q, K, COS, SIN = tensors()


def test_a_table_is_float32_or_of_the_dtype_of_q() -> None:
    with pytest.raises(xattn.InvalidArgumentError) as error:
        xattn.apply_rotary(Q, K, COS.half(), SIN.half())
    assert str(error.value) == "cos: got float16, want float32. Pass cos.float()."


def test_a_table_that_wants_a_gradient_is_fine_where_none_is_made() -> None:
    with torch.no_grad():
        xattn.apply_rotary(Q, K, COS.clone().requires_grad_(), SIN)
