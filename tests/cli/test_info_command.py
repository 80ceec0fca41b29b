"""`xattn info`: what is installed, and what each backend declares of each op."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from cli.command_line import Run, plain
from support import ROOT, Load, execute, stranger

import xattn
from xattn.ops.table import OPS


def test_info_json_is_info_and_the_capabilities(run: Run) -> None:
    result = run("info", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    declared = {backend["name"]: backend.pop("capabilities") for backend in document["backends"]}
    assert document == plain(xattn.info())
    assert [block["op"] for block in declared["reference"]] == list(OPS)
    for block, op in zip(declared["reference"], OPS.values(), strict=True):
        assert block["device"] == "any"
        assert set(block["features"]) <= set(op.vocabulary.feature_names)
        assert block["grads"] == list(op.vocabulary.grads)
        assert "float64" in block["dtypes"]


ACME = """
import torch
import xattn

def block(device, features, archs=None, sizes={}):
    return xattn.Capabilities(
        device=device, dtypes=frozenset({torch.bfloat16}), features=frozenset(features), archs=archs, sizes=sizes,
        grads=frozenset({"qkv"}), checked="on paper [draft]",
    )

class Attention(xattn.AttentionKernel):
    capabilities = (
        block("acme", {"causal"}, frozenset({"acme9"}), {"headdim": (64, 128, 32), "headdim_v": (8, None, 1)}),
        block("other", {"window"}),
    )
    def plan(self, request):
        return None

class Rotary(xattn.RotaryKernel):
    capabilities = (
        xattn.Capabilities(
            device="acme", dtypes=frozenset({torch.float16}), features=frozenset({"partial"}), checked="by hand"
        ),
    )
    def plan(self, request):
        return None

class Acme(xattn.Backend):
    name = "acme"
    api_version = 1
    kernels = (Attention(), Rotary())
    def info(self):
        return {"driver": "4.2 [bold]"}

@xattn.hookimpl
def xattn_backends():
    return [Acme()]
"""


def tables(shown: str) -> dict[str, list[str]]:
    """The lines under each title."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in shown.splitlines():
        if line and line[0] != " ":
            title = line.strip()
        elif line.strip():
            found.setdefault(title, []).append(line)
    return found


def test_info_shows_what_a_backend_declares_of_each_op(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-acme", ACME, plugin="acme-plugin"))
    shown = run("info").stdout
    for part in ("acme-plugin", "xattn-acme 1.0", "4.2 [bold]", "on paper [draft]"):
        assert part in shown, part
    found = tables(shown)
    first, second, third = (str(len(OPS) + i) for i in (1, 2, 3))  # after those of reference
    *_, one, more, two, three = (line.split() for line in found["Backends"])
    assert one == ["acme", "attention", first, "acme", "bf16", "headdim", "64", "to", "128", "by", "32"]
    assert more == ["acme9", "headdim_v", "8", "and", "up"]
    assert two == [second, "other", "bf16", "any"]  # of the same backend and op
    assert three == ["acme", "apply_rotary", third, "acme", "fp16", "any"]
    checked = [line.split() for line in found["How they were checked"]]
    assert [f"{first},", second, "on", "paper", "[draft]"] in checked
    assert [third, "by", "hand"] in checked
    features = {line.split()[0]: line.split()[1:] for line in found["Features of attention"]}
    assert features["causal"] == ["✓", "✓", "-"]  # of reference, the first, the second
    assert features["window"] == ["✓", "-", "✓"]
    assert features["grad_qkv"] == ["✓", "✓", "✓"]
    assert features["grad_sinks"] == ["✓", "-", "-"]
    features = {line.split()[0]: line.split()[1:] for line in found["Features of apply_rotary"]}
    assert features["partial"] == ["✓", "✓"]
    assert features["interleaved"] == ["✓", "-"]
    assert set(found) >= {f"Features of {op}" for op in OPS}


def test_info_names_a_disabled_backend(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-acme", ACME, plugin="acme-plugin"), ["acme"])
    assert "acme  disabled by XATTN_DISABLE=acme" in run("info", columns=80).stdout


def test_info_fits_into_80_columns(run: Run) -> None:
    lines = run("info", columns=80).stdout.splitlines()
    accounts = [line for line in lines if "cannot be used" in line]  # with commands to copy: never broken by hand
    assert max(len(line) for line in lines if line not in accounts) <= 80
    assert "…" not in "".join(lines)


def test_info_reports_a_broken_plugin_and_ends_well(run: Run, strangers: Path, load: Load) -> None:
    load(stranger(strangers, "xattn-broken", "import no_such_vendor", plugin="broken"))
    result = run("info", columns=200)
    assert result.exit_code == 0
    assert result.stdout.count("No module named 'no_such_vendor'") >= 2  # in the table and as a problem
    assert "xattn-broken 1.0" in result.stdout


def test_info_needs_no_plotting_library() -> None:
    code = """
    import sys
    sys.modules["matplotlib"] = None
    from typer.testing import CliRunner
    from xattn.cli.app import app
    assert CliRunner().invoke(app, ["info"]).exit_code == 0
    """
    execute([sys.executable, "-c", textwrap.dedent(code)], ROOT)
