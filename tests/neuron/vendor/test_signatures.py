"""The stand-in's signatures beside those in AWS's sources, which are read and not run.

XATTN_NKILIB_PATH, XATTN_NXDI_PATH and XATTN_NEURONXCC_ATTENTION name checkouts of nki-library and of
neuronx-distributed-inference, and the file attention.py of neuronxcc.nki.kernels or a folder that has it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from xattn_elsewhere.nki.standin import flash_neuronxcc as neuronxcc
from xattn_elsewhere.nki.standin import flash_nxdi as nxdi
from xattn_elsewhere.nki.standin.nkilib_bwd import attention_bwd
from xattn_elsewhere.nki.standin.nkilib_cte import attention_cte

NKILIB = ("XATTN_NKILIB_PATH", "core/attention/attention_cte.py")
NKILIB_BWD = ("XATTN_NKILIB_PATH", "core/attention/attention_bwd.py")
NXDI = ("XATTN_NXDI_PATH", "modules/sliding_window/attention.py")
NEURONXCC = ("XATTN_NEURONXCC_ATTENTION", "attention.py")


def _node(variable: str, file: str, name: str) -> Any:
    given = Path(os.environ[variable])
    found = [given] if given.is_file() else given.rglob(Path(file).name)
    (path,) = [path for path in found if path.as_posix().endswith(file)]
    (node,) = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == name]
    return node


def _written(value: Any) -> str:
    return "nl.float32" if value is torch.float32 else repr(value)


@pytest.mark.parametrize(
    ("source", "kernel"),
    [
        (NKILIB, attention_cte),
        (NKILIB_BWD, attention_bwd),
        (NXDI, nxdi.flash_fwd),
        (NEURONXCC, neuronxcc.flash_fwd),
        (NEURONXCC, neuronxcc.flash_attn_bwd),
    ],
    ids=["attention_cte", "attention_bwd", "flash_fwd_nxdi", "flash_fwd", "flash_attn_bwd"],
)
def test_the_kernels_take_what_the_vendors_take(source: tuple[str, str], kernel: Any) -> None:
    arguments = _node(*source, kernel.__name__).args
    assert [*arguments.posonlyargs, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg] == [None, None]
    names = [one.arg for one in arguments.args]
    defaults = [""] * (len(names) - len(arguments.defaults)) + [ast.unparse(one) for one in arguments.defaults]
    own = inspect.signature(kernel).parameters.values()
    written = ["" if one.default is one.empty else _written(one.default) for one in own]
    assert list(zip([one.name for one in own], written, strict=True)) == list(zip(names, defaults, strict=True))


@pytest.mark.parametrize(
    ("source", "config"),
    [(NXDI, nxdi.FlashConfig), (NEURONXCC, neuronxcc.FlashConfig)],
    ids=["nxdi", "neuronxcc"],
)
def test_the_configurations_have_the_vendors_fields(source: tuple[str, str], config: Any) -> None:
    constants = {"DEFAULT_SLIDING_WINDOW_SEQ_TILE_SIZE": "2048"}
    fields = [one for one in _node(*source, "FlashConfig").body if isinstance(one, ast.AnnAssign)]
    theirs = {ast.unparse(one.target): ast.unparse(one.value) for one in fields if one.value is not None}
    own = {one.name: repr(one.default) for one in dataclasses.fields(config)}
    assert own == {name: constants.get(value, value) for name, value in theirs.items()}
