"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from typer.testing import Result

SMALL = ["--shape", "2,4,4,8"]

# The fixture `run`.
Run = Callable[..., Result]


def plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))
