"""Where a backend's profile is found, and what is checked of it beyond its text."""

from __future__ import annotations

import datetime
import zipfile
from pathlib import Path

import pytest
from support import Load, backend_source, stranger
from xattn_conformance.profiles import known
from xattn_conformance.profiles import load as loading
from xattn_conformance.profiles.load import find
from xattn_conformance.profiles.schema import Profile, ProfileError
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic

import xattn

TODAY = datetime.date(2026, 6, 1)
CASE = "attention/lse/bfloat16/b2-q65-k65-h2-g2-d64-v64/needle"

ACME = 'schema = 1\nbackend = "acme"\nhardware = ["cpu"]\n'
FLOAT32 = '[arithmetic]\nprobabilities = "float32"\n'


def waived(case: str = CASE, check: str = "out.zmax", filed: str = "2026-05-02", expires: str = "2026-07-31") -> str:
    return f"""
        [[waiver]]
        id = "XW-1"
        cases = ["{case}"]
        check = "{check}"
        observed = 9.0
        limit = 11.0
        device = "cpu"
        kernel = "acme 2.1"
        effect = "the last key is read twice"
        upstream = "https://github.com/acme/attention/issues/12"
        filed = {filed}
        expires = {expires}
        owner = "@somebody"
    """


@pytest.fixture
def acme(strangers: Path, load: Load) -> Path:
    """The folder of an installed plugin of one module, whose one backend is called acme."""
    load(stranger(strangers, "xattn-acme", backend_source("acme", 0.0)))
    return strangers


def shipped(folder: Path, text: str, *, admitted: bool = False) -> Profile:
    """The profile of acme, shipped with this text. admitted: whether it is tried on wrong kernels as well."""
    (folder / "acme.profile.toml").write_text(text)
    return loading.load("acme", admitted=admitted, today=TODAY).profile


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        shipped(folder, text, admitted=True)
    return str(caught.value)


def test_it_lies_beside_a_single_module(acme: Path) -> None:
    profile = shipped(acme, ACME + FLOAT32)
    assert profile.arithmetic_for("cpu", "bfloat16") == Arithmetic(probabilities="float32")
    assert find("acme") == (ACME + FLOAT32, "xattn_acme: acme.profile.toml")


def test_it_lies_in_the_package_of_the_class_which_may_be_zipped(
    strangers: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(strangers / "acme.zip", "w") as package:
        package.writestr("acme_kernels/__init__.py", "")
        package.writestr("acme_kernels/backend.py", backend_source("acme", 0.0))
        package.writestr("acme_kernels/acme.profile.toml", ACME + FLOAT32)
    monkeypatch.syspath_prepend(strangers / "acme.zip")
    # Beside the plugin's module, but not beside the class.
    (strangers / "acme.profile.toml").write_text(ACME)
    load(stranger(strangers, "xattn-acme", "from acme_kernels.backend import xattn_backends"))
    assert find("acme") == (ACME + FLOAT32, "acme_kernels: acme.profile.toml")


def test_a_backend_without_one_is_held_to_the_canonical_arithmetic(acme: Path) -> None:
    loaded = loading.load("acme", admitted=False)
    assert loaded.profile == Profile(schema=1, backend="acme", hardware=())
    assert loaded.profile.arithmetic_for("cpu", "float16") == CANONICAL
    assert "xattn_acme ships no acme.profile.toml, so the canonical arithmetic holds" in loaded.source


def test_a_file_takes_the_place_of_what_is_shipped(acme: Path, tmp_path: Path) -> None:
    (acme / "acme.profile.toml").write_text("rtol = 1.0")
    (tmp_path / "mine.toml").write_text(ACME + FLOAT32)
    loaded = loading.load("acme", tmp_path / "mine.toml", admitted=False)
    assert (loaded.text, loaded.source) == (ACME + FLOAT32, "mine.toml, given in place of the backend's own")


def test_a_file_that_cannot_be_read(acme: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nowhere\.toml cannot be read"):
        loading.load("acme", tmp_path / "nowhere.toml")


def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(xattn.UnknownBackendError, match="no backend or plugin is called 'sdpaa'"):
        loading.load("sdpaa")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rtol = 1.0\n" + ACME, "Tolerances are not declared"),
        (ACME.replace("acme", "sdpa"), 'backend = "sdpa", but it is the profile of "acme"'),
        (ACME.replace("cpu", "cuda"), "names the device 'cuda', but the backend declares: cpu"),
        (ACME + '[[arithmetic_on]]\ndevice = "gpu"\ndtypes = ["float32"]\n', "names the device 'gpu'"),
        (ACME + "[bitwise_on.gpu]\nbatch = true\n", "names the device 'gpu', but the backend declares: cpu"),
        (ACME + waived(filed="2026-06-02", expires="2026-06-03"), "XW-1: filed on 2026-06-02, which is yet to come"),
        (ACME + waived(case=CASE[:-1]), f"XW-1: the suite has no case '{CASE[:-1]}'"),
        (ACME + waived(case="attention/lse/bfloat16"), "the suite has no case 'attention/lse/bfloat16'"),
        (ACME + waived(check="out.rtol"), f"XW-1: {CASE} has no check 'out.rtol'"),
        (ACME + waived(check="out"), "has no check 'out'"),
        (ACME + waived(check="dq.zmax"), "has no check 'dq.zmax'"),
        # What a result is and what may be written to are no matters of degree.
        (ACME + waived(check="out.shape"), "has no check 'out.shape'"),
        (ACME + waived(check="inputs.written"), "has no check 'inputs.written'"),
    ],
)
def test_what_is_refused(acme: Path, text: str, words: str) -> None:
    message = refused(acme, text)
    assert message.startswith("the profile of acme (xattn_acme: acme.profile.toml) is refused\n")
    assert words in message


def test_every_problem_is_named(acme: Path) -> None:
    message = refused(acme, ACME.replace("cpu", "cuda") + waived(case="nothing", filed="2026-06-02"))
    assert "cuda" in message
    assert "yet to come" in message
    assert "nothing" in message


def test_a_waiver_in_order_is_taken(acme: Path) -> None:
    (waiver,) = shipped(acme, ACME + waived(filed=str(TODAY))).waiver
    assert (waiver.id, waiver.cases) == ("XW-1", (CASE,))


@pytest.mark.parametrize("check", ["out.exact", "lse.bias", "strides:out.zmax", "repeat:out.bits"])
def test_the_checks_that_may_be_waived(acme: Path, check: str) -> None:
    varied = (case for case in known.cases().values() if {"repeat", "strides"} <= set(case.variations))
    case = next(case for case in varied if not case.grads and case.options.get("return_lse"))
    assert shipped(acme, ACME + waived(case=case.id, check=check)).waiver[0].check == check
    assert check in known.checks(case.id, CANONICAL)
    if ":" in check:
        assert f"XW-1: {CASE} has no check {check!r}" in refused(acme, ACME + waived(check=check))


def test_what_would_let_a_wrong_kernel_pass_is_refused(acme: Path) -> None:
    message = refused(acme, ACME + '[arithmetic]\nscaled_q = true\nscores = "input"\nexp_bits = 10\n')
    assert "on cpu in bfloat16 a kernel that is wrong" in message


def test_a_waiver_that_has_expired_stops_no_run(acme: Path) -> None:
    (waiver,) = shipped(acme, ACME + waived(expires="2026-05-31")).waiver
    assert waiver.expires < TODAY


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_the_profiles_that_xattn_ships(backend: str) -> None:
    loaded = loading.load(backend, admitted=False)  # `make conformance` begins with their admission
    assert loaded.source == f"xattn_{backend}: {backend}.profile.toml"
    assert "cpu" in loaded.profile.hardware
    assert loaded.profile.waiver == ()
