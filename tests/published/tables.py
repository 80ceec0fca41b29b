"""Every table, and its rows as parameters of a test."""

from __future__ import annotations

from typing import Any

import pytest
from published import aiter, aiter_triton, flash_attention
from published.rows import Row
from support import extended

TABLES = (*aiter.TABLES, *aiter_triton.TABLES, *flash_attention.TABLES)

# What a row of a sample is cut to, and one whose gradients are asked for, whose golden is worked out in full.
_SAMPLE, _GRADS = 2**12, 2**17


def rows(scores: int) -> list[Any]:
    """One row of each table, small; and for `make extended` all of them, cut to so many scores."""
    sample = [table.rows()[0].within(_SAMPLE) for table in TABLES]
    every = [row.within(min(scores, _GRADS) if row.grads else scores) for table in TABLES for row in table.rows()]
    return [*sample, *extended(*(row for row in every if row not in sample))]


def each_row(scores: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows(scores), ids=_name)


def _name(row: Row) -> str:
    return row.id
