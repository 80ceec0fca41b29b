"""One case's tensors in a safetensors file, to look into with any tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from xattn_conformance.tolerance.expected import Expected


class Dump:
    """inputs.*: the bits of the inputs. outputs.*: what the backend returned, in its own layout, as float64.
    golden.* and sigma.*: (batch, heads, rows, columns); golden_rows.*: which rows those are, where not all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(
        self, inputs: Mapping[str, NDArray[Any]], results: Mapping[str, Tensor], expected: Mapping[str, Expected]
    ) -> None:
        tensors: dict[str, NDArray[Any]] = {f"inputs.{name}": values for name, values in inputs.items()}
        for name, tensor in results.items():
            tensors[f"outputs.{name}"] = tensor.detach().cpu().double().numpy()
        for name, golden in expected.items():
            tensors[f"golden.{name}"], tensors[f"sigma.{name}"] = golden.value, golden.sigma
            if golden.rows is not None:
                tensors[f"golden_rows.{name}"] = golden.rows
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, self.path)
