"""Under which names the adapter is registered, with which transformers."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from integrations.beside_eager import TOLERANCE, distance, make
from transformers import AttentionInterface, AttentionMaskInterface

import xattn
from xattn.integrations.transformers import register


@pytest.mark.parametrize("name", ["xattn_flash", "sdpa", "eager", "paged|xattn", "org/xattn"])
def test_a_name_that_means_something_to_transformers_is_refused(name: str) -> None:
    with pytest.raises(xattn.InvalidArgumentError, match="name: got"):
        register(name)


def test_another_name() -> None:
    register("mine")
    try:
        assert distance(make("llama", "eager"), make("llama", "mine"), "left") <= TOLERANCE
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop("mine")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'xattn[hf]'")):
        register()


def test_with_an_old_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers exchanges its module object on the way: the one imported above may not be the one in use.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.56.2")
    with pytest.raises(ImportError, match=r"transformers >= 4\.57, here is 4\.56\.2"):
        register()


def test_importing_the_adapter_imports_no_transformers() -> None:
    code = "import sys, xattn.integrations.transformers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
