"""Profiles and waivers: what is accepted, what is refused and why, and what waivers make of a case."""

from __future__ import annotations

import datetime
import textwrap
from typing import Any

import msgspec
import pytest
from conformance.handmade import case
from xattn_conformance.profiles.schema import Bitwise, Override, Profile, ProfileError, Waiver, parse
from xattn_conformance.profiles.waivers import settle, status_of
from xattn_conformance.result import Check
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic

TODAY = datetime.date(2026, 6, 1)
OF = case(dtype="float32", shape=(1, 2, 2, 1, 1, 8, 8))
CASE = OF.id

HEAD = 'schema = 1\nbackend = "acme"\nhardware = ["cuda"]\n'


def waiver_text(**changes: Any) -> str:
    """A [[waiver]] that is in order, but for `changes`; None leaves a key out."""
    fields = {
        "id": '"XW-1"',
        "cases": f'["{CASE}"]',
        "check": '"out.zrow"',
        "observed": "8.0",
        "limit": "10.0",
        "device": '"cuda"',
        "kernel": '"acme 2.1"',
        "effect": '"one key too many at the window\'s edge"',
        "upstream": '"https://github.com/acme/attention/issues/12"',
        "filed": "2026-05-02",
        "expires": "2026-07-31",
        "owner": '"@somebody"',
    } | changes
    return "[[waiver]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)


def waiver(**changes: Any) -> Waiver:
    return parse(HEAD + waiver_text(**changes)).waiver[0]


def refused(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse(text)
    return str(caught.value)


def test_a_profile_says_only_what_differs() -> None:
    assert parse(HEAD) == Profile(schema=1, backend="acme", hardware=("cuda",))
    assert parse(HEAD).arithmetic_for("cuda", "bfloat16") == CANONICAL
    assert parse(HEAD).bitwise == Bitwise(repeat=True, poison=True, batch=False, strides=False, padding=False)


def test_what_holds_on_one_device_is_laid_over_what_holds_on_all() -> None:
    text = """
        [arithmetic]
        scaled_q = true
        exp_bits = 20
        [[arithmetic_on]]
        device = "cuda"
        dtypes = ["float32", "float16"]
        exp_bits = 12
        products = "tf32"
    """
    profile = parse(HEAD + textwrap.dedent(text))
    for dtype in ("float32", "float16"):
        assert profile.arithmetic_for("cuda", dtype) == Arithmetic(scaled_q=True, exp_bits=12, products="tf32")
    assert profile.arithmetic_for("cuda", "bfloat16") == Arithmetic(scaled_q=True, exp_bits=20)
    assert profile.arithmetic_for("cpu", "float32") == Arithmetic(scaled_q=True, exp_bits=20)
    with pytest.raises(ValueError, match="float64"):
        profile.arithmetic_for("cuda", "float64")


PLACES = {
    "the top": "{key} = 0.1\n" + HEAD,
    "a table of its own": HEAD + "[{key}]\nout = 0.1\n",
    "arithmetic": HEAD + "[arithmetic]\n{key} = 0.1\n",
    "arithmetic_on": HEAD + '[[arithmetic_on]]\ndevice = "cpu"\ndtypes = ["float32"]\n{key} = 0.1\n',
    "bitwise": HEAD + "[bitwise]\n{key} = 0.1\n",
    "waiver": HEAD + waiver_text() + "{key} = 0.1\n",
    "a table in arithmetic": HEAD + "[arithmetic.{key}]\nout = 0.1\n",
    "a table in a waiver": HEAD + waiver_text() + "[waiver.{key}]\nout = 0.1\n",
}


@pytest.mark.parametrize("key", ["rtol", "atol", "tolerance", "limits", "zmax", "unheard_of"])
@pytest.mark.parametrize("place", PLACES)
def test_no_tolerance_finds_a_place(place: str, key: str) -> None:
    message = refused(PLACES[place].format(key=key))
    assert f"unknown field `{key}`" in message
    assert "Tolerances are not declared: they follow from the arithmetic" in message


def test_no_field_of_the_schema_is_a_tolerance() -> None:
    names = {name for kind in (Profile, Bitwise, Override, Waiver, Arithmetic) for name in kind.__struct_fields__}
    assert not {name for name in names for word in ("tol", "eps", "slack", "factor", "multiplier") if word in name}
    assert {name for name in names if "limit" in name} == {"limit"}  # of a waiver


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[arithmetic]\nexp_bits = 9\n", ("arithmetic", "exp_bits", "10")),
        ("[arithmetic]\nexp_bits = 11.5\n", ("exp_bits", "float")),
        ("[arithmetic]\nexp_bits = true\n", ("exp_bits", "bool")),
        ('[arithmetic]\nscores = "float16"\n', ("float16", "scores")),
        ('[arithmetic]\nproducts = "bf16"\n', ("bf16", "products")),
        ("arithmetic = 3\n", ("arithmetic",)),
        ("arithmetic_on = 3\n", ("arithmetic_on",)),
        ("arithmetic_on = [3]\n", ("arithmetic_on",)),
        ('[[arithmetic_on]]\ndevice = "cpu"\n', ("dtypes", "arithmetic_on")),
        ('[[arithmetic_on]]\ndevice = "cpu"\ndtypes = []\n', ("dtypes", "arithmetic_on")),
        ('[[arithmetic_on]]\ndevice = "cpu"\ndtypes = ["float64"]\n', ("float64", "arithmetic_on")),
        ('[[arithmetic_on]]\ndevice = "cpu"\ndtypes = ["float32"]\nexp_bits = 2\n', ("exp_bits", "arithmetic_on[0]")),
        ('[[arithmetic_on]]\ndevice = "cpu"\ndtypes = ["float32"]\n' * 2, ("twice", "cpu float32")),
        ("[bitwise]\nrepeat = 1\n", ("bitwise", "repeat")),
        ("[bitwise]\nrepeat = false\n", ("poison = false",)),
        ('executor = "acme"\n', ("executor",)),
        ("schema = 2\n", ("TOML",)),  # a key twice
        ("hardware", ("TOML",)),
    ],
)
def test_what_is_wrong_is_named(text: str, words: tuple[str, ...]) -> None:
    message = refused(HEAD + text)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("key", ["schema", "backend", "hardware"])
def test_what_must_be_said(key: str) -> None:
    assert f"missing required field `{key}`" in refused(
        "".join(line for line in HEAD.splitlines(keepends=True) if not line.startswith(key))
    )


def test_another_schema_is_refused() -> None:
    assert "schema" in refused(HEAD.replace("schema = 1", "schema = 2"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limit": "10.01"}, ("10.01", "1.25")),
        ({"limit": "7.9"}, ("7.9",)),
        ({"limit": "inf", "observed": "inf"}, ("finite",)),
        ({"limit": "nan", "observed": "nan"}, ("waiver[0]",)),
        ({"limit": "inf"}, ("finite",)),
        ({"observed": "0.0", "limit": "0.0"}, ("observed",)),
        ({"observed": "-8.0", "limit": "-9.0"}, ("observed",)),
        ({"expires": "2026-08-01"}, ("2026-08-01", "90 days")),
        ({"expires": "2026-05-02"}, ("2026-05-02", "after filed")),
        ({"expires": '"never"'}, ("expires",)),
        ({"expires": None}, ("expires",)),
        ({"upstream": None}, ("upstream",)),
        ({"upstream": '""'}, ("https",)),
        ({"upstream": '"see the tracker"'}, ("https",)),
        ({"upstream": '"http://github.com/acme/attention/issues/12"'}, ("https",)),
        ({"upstream": '"https://github.com/acme/attention"'}, ("with its number",)),
        ({"cases": "[]"}, ("cases",)),
        ({"cases": '["*"]'}, ("pattern",)),
        ({"cases": f'["{CASE}", "attention/window*"]'}, ("attention/window*", "pattern")),
        ({"cases": f'["{CASE}", "{CASE}"]'}, ("twice", CASE)),
        ({"owner": '" "'}, ("owner",)),
        ({"effect": '""'}, ("effect",)),
        ({"kernel": None}, ("kernel",)),
        ({"id": '""'}, ("id",)),
    ],
)
def test_a_waiver_that_is_not_in_order(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refused(HEAD + waiver_text(**changes))
    assert all(word in message for word in words), message


def test_ninety_days_and_a_quarter_are_admitted() -> None:
    found = waiver(limit="10.0", expires="2026-07-31")
    assert (found.expires - found.filed).days == 90
    assert found.limit == 1.25 * found.observed


def test_two_waivers_of_one_id_or_of_one_check() -> None:
    other = '["attention/other"]'
    assert "twice the same waiver id XW-1" in refused(HEAD + waiver_text() + waiver_text(cases=other))
    again = waiver_text(id='"XW-2"')
    assert f"twice the same waiver for out.zrow of {CASE} on cuda" in refused(HEAD + waiver_text() + again)
    parse(HEAD + waiver_text() + waiver_text(id='"XW-2"', device='"rocm"'))


CHECKS = (
    Check(name="out.zmax", value=3.0, limit=8.0),
    Check(name="out.zrow", value=8.5, limit=6.0),
)


def test_a_waived_case_is_waived_and_says_by_what() -> None:
    settled = settle(OF, "cuda", CHECKS, [waiver()], TODAY)
    assert (settled.status, settled.problems) == ("WAIVED", ())
    assert settled.checks == (CHECKS[0], msgspec.structs.replace(CHECKS[1], limit=10.0, waiver="XW-1"))


def test_without_a_waiver_the_checks_decide() -> None:
    assert settle(OF, "cuda", CHECKS, [], TODAY).status == "FAIL"
    assert settle(OF, "cuda", CHECKS[:1], [], TODAY).status == "PASS"
    assert settle(OF, "cuda", (), [], TODAY).status == "FAIL"
    assert status_of(CHECKS[:1], ("a problem",)) == "FAIL"


@pytest.mark.parametrize("place", [{"cases": '["attention/other"]'}, {"device": '"cpu"'}])
def test_a_waiver_reaches_no_other_case_and_no_other_device(place: dict[str, Any]) -> None:
    settled = settle(OF, "cuda", CHECKS, [waiver(**place)], TODAY)
    assert (settled.status, settled.checks, settled.problems) == ("FAIL", CHECKS, ())


def with_zrow(value: float | None) -> tuple[Check, ...]:
    return CHECKS[0], msgspec.structs.replace(CHECKS[1], value=value)


@pytest.mark.parametrize(
    ("checks", "changes", "words"),
    [
        (with_zrow(5.9), {}, "XW-1 is stale: out.zrow passes without it"),
        (with_zrow(10.1), {}, "XW-1 lets out.zrow reach 10, not 10.1"),
        (with_zrow(None), {}, "not a number that is not finite"),
        (CHECKS, {"expires": "2026-05-31"}, "XW-1 expired on 2026-05-31"),
        (CHECKS[:1], {}, "XW-1 is for out.zrow, which was not checked"),
        (CHECKS, {"observed": "4.0", "limit": "5.0"}, "XW-1 lets out.zrow reach 5, not 8.5"),
    ],
)
def test_what_makes_a_waived_case_fail(checks: tuple[Check, ...], changes: dict[str, Any], words: str) -> None:
    settled = settle(OF, "cuda", checks, [waiver(**changes)], TODAY)
    assert settled.status == "FAIL"
    (problem,) = settled.problems
    assert words in problem
    assert all(check.limit >= 6.0 for check in settled.checks)  # never lowered
    assert not any(check.ok and check.waiver for check in settled.checks)


def test_on_other_inputs_a_waiver_need_not_be_needed() -> None:
    other = msgspec.structs.replace(OF, draw=7)
    assert settle(other, "cuda", with_zrow(5.9), [waiver()], TODAY).status == "PASS"
    assert settle(other, "cuda", with_zrow(9.9), [waiver()], TODAY).status == "WAIVED"
    assert settle(other, "cuda", with_zrow(10.1), [waiver()], TODAY).status == "FAIL"


def test_a_waiver_holds_on_the_day_it_expires() -> None:
    assert settle(OF, "cuda", CHECKS, [waiver(expires="2026-06-01")], TODAY).status == "WAIVED"


def test_a_waiver_excuses_one_check_only() -> None:
    checks = (*CHECKS, Check(name="lse.zmax", value=9.0, limit=8.0))
    settled = settle(OF, "cuda", checks, [waiver()], TODAY)
    assert settled.status == "FAIL"
    assert [check.ok for check in settled.checks] == [True, True, False]


def test_a_device_may_promise_other_bits() -> None:
    text = 'schema = 1\nbackend = "acme"\nhardware = []\n[bitwise]\nbatch = true\n'
    found = parse(text + "[bitwise_on.cuda]\nrepeat = false\npoison = false\n")
    assert found.bitwise_for("cpu").batch
    assert not found.bitwise_for("cuda").repeat
    assert not found.bitwise_for("cuda").batch  # instead of the general promise, not on top of it
    with pytest.raises(ProfileError, match="no bits to promise"):
        parse(text + "[bitwise_on.cuda]\nrepeat = false\n")
