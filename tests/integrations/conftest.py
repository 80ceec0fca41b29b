"""Every test here uses the adapter; nothing is fetched."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import pytest
import transformers

from xattn.integrations.transformers import register


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()
    transformers.logging.set_verbosity_error()
