"""The plugin of docs/write-a-backend.md, from source to answer."""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, Load, build, install, qkv, run_python
from xattn_conformance.ops.attention import rowwise
from xattn_conformance.ops.attention.problem import Problem

import xattn
from xattn import AttentionRequest, RotaryRequest
from xattn.plugin import dtype_name

ACME = ROOT / "tests" / "thirdparty" / "xattn-acme"
PAGE = (ROOT / "docs" / "write-a-backend.md").read_text()


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that xattn-acme is installed in, by way of a wheel."""
    folder = tmp_path_factory.mktemp("acme")
    return install(folder / "site", build(ACME, folder, "--wheel"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_plugin_that_is_tested() -> None:
    files = ("pyproject.toml", "xattn_acme/acme.profile.toml")
    assert blocks("toml") == [(ACME / file).read_text() for file in files]
    assert blocks("python")[0] == (ACME / "xattn_acme" / "__init__.py").read_text()


@pytest.mark.parametrize("request_type", [AttentionRequest, RotaryRequest])
def test_the_page_names_every_word_of_a_block(request_type: type[xattn.Request]) -> None:
    words = request_type.vocabulary
    for name in (*words.feature_names, *words.grads, *words.sizes, *words.phases):
        assert f"`{name}`" in PAGE, name


def test_the_page_runs_as_printed(acme: Path, tmp_path: Path) -> None:
    snippets, outputs = blocks("python")[1:], blocks("text")
    assert len(snippets) == len(outputs) == 2
    marked = "\nprint('-----')\n".join(snippets)
    assert run_python(marked, tmp_path, [acme]).split("-----\n") == outputs


def test_an_installed_plugin_is_found_and_takes_part(acme: Path, tmp_path: Path) -> None:
    code = """
    import json, sys
    import torch, xattn

    q, k, v = (torch.randn(2, n, h, 16) for n, h in ((3, 4), (7, 2), (7, 2)))
    assert "xattn_acme" not in sys.modules, "import xattn must import no plugin"
    by_name, by_auto = (xattn.attention(q, k, v, causal=True, backend=backend) for backend in ("acme", "auto"))
    info = xattn.info()
    print(json.dumps({
        "file": sys.modules["xattn_acme"].__file__,
        "plugin": [plugin for plugin in info["plugins"] if plugin["name"] == "acme"],
        "backend": [backend for backend in info["backends"] if backend["name"] == "acme"],
        "problems": [line for line in info["problems"] if "acme" in line],
        "auto": xattn.explain(q, k, v, causal=True).backend,
        "auto_is_acme": torch.equal(by_name, by_auto),
        "rejected": [str(reason) for candidate in xattn.explain(q.half(), k.half(), v.half(), window=(2, 0)).candidates
                     if candidate.name == "acme" for reason in candidate.reasons],
    }))
    """
    told = json.loads(run_python(code, tmp_path, [acme], XATTN_DISABLE="sdpa,reference"))
    assert told.pop("file") == str(acme / "xattn_acme" / "__init__.py")
    plugin = {"name": "acme", "module": "xattn_acme", "distribution": "xattn-acme", "version": "1.0"}
    declared = {"devices": ["cpu"], "ops": ["attention"], "info": {"acme": "1.0"}}
    backend = {"name": "acme", "plugin": "acme", "disabled_by": None, **declared}
    assert told == {
        "plugin": [{**plugin, "backends": ["acme"], "failures": []}],
        "backend": [backend],
        "problems": [],
        "auto": "acme",
        "auto_is_acme": True,
        "rejected": [
            "dtype=float16 (supported: bfloat16, float32)",
            "window=(2, 0) (supported: off)",
        ],
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_example_is_right(
    acme: Path, load: Load, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, causal: bool
) -> None:
    monkeypatch.syspath_prepend(acme)
    load(Distribution.at(next(acme.glob("*.dist-info"))).entry_points)
    for seqlen_q, nheads_k in ((1, 1), (5, 2), (9, 6)):
        q, k, v = qkv(seqlen_q=seqlen_q, seqlen_k=9, nheads=6, nheads_k=nheads_k, headdim=24, dtype=dtype)
        out = xattn.attention(q, k, v, causal=causal, backend="acme")
        arrays: dict[str, Any] = {name: x.double().numpy() for name, x in (("q", q), ("k", k), ("v", v))}
        expected, _ = rowwise.forward(Problem(dtype=dtype_name(dtype), **arrays, causal=causal))
        assert out.dtype == dtype
        assert out.is_contiguous()
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        np.testing.assert_allclose(out.double().numpy(), expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(xattn.UnsupportedError, match=r"seqlen_q=9 \(supported: at most seqlen_k, with causal\)"):
        xattn.attention(*qkv(seqlen_q=9, seqlen_k=5, headdim=24), causal=True, backend="acme")
