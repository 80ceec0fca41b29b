"""A profile under which a wrong kernel would pass is refused, whatever it tries to be loose by."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from support import extended
from xattn_conformance.case import DTYPES
from xattn_conformance.mutants.mutant import Mutant, Results
from xattn_conformance.ops.attention.mutants.ways import answer
from xattn_conformance.ops.attention.mutants.zoo import MUTANTS
from xattn_conformance.ops.attention.problem import Problem
from xattn_conformance.profiles import admission, known
from xattn_conformance.profiles.admission import admit
from xattn_conformance.profiles.schema import Profile, Waiver, parse
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic

HEAD = 'schema = 1\nbackend = "acme"\nhardware = ["cuda"]\n'

# Each declaration as loose as the schema lets it be.
LOOSEST = """
[arithmetic]
scaled_q = true
products = "tf32"
scores = "input"
recomputed_scores = "input"
probabilities = "input"
partial_outputs = "input"
probability_gradients = "input"
score_gradients = "input"
head_gradients = "input"
exp_bits = 10
sums = "truncated"
tanh_bits = 10
subnormals = "flushed"
"""

CASE = "attention/lse/bfloat16/b2-q65-k65-h2-g2-d64-v64/needle"
OTHER = "attention/causal+lse/bfloat16/b2-q129-k129-h3-g3-d64-v64/normal"


def waiver(number: int, cases: Sequence[str], check: str, observed: float = 1e30) -> Waiver:
    return Waiver(
        id=f"XW-{number}",
        cases=tuple(cases),
        check=check,
        observed=observed,
        limit=1.25 * observed,
        device="cuda",
        kernel="acme 2.1",
        effect="it is hard to say",
        upstream="https://github.com/acme/attention/issues/12",
        filed=datetime.date(2026, 5, 2),
        expires=datetime.date(2026, 7, 31),
        owner="@somebody",
    )


def profile(arithmetic: Arithmetic = CANONICAL, waivers: Sequence[Waiver] = ()) -> Profile:
    return Profile(schema=1, backend="acme", hardware=("cuda",), arithmetic=arithmetic, waiver=tuple(waivers))


def checks_of(cases: Sequence[str]) -> list[str]:
    return sorted({check for case in cases for check in known.checks(case, CANONICAL)})


def test_the_canonical_arithmetic_is_admitted() -> None:
    assert admit(profile(), ["cuda"], DTYPES) == []


def test_what_proves_nothing_is_among_the_mutants() -> None:
    assert {"zero", "mean-of-v", "sign"} <= {mutant.name for mutant in MUTANTS}


def test_the_loosest_arithmetic_is_refused() -> None:
    loosest = parse(HEAD + LOOSEST)
    declared = set(Arithmetic.__struct_fields__)
    assert {field for field in declared if f"{field} =" in LOOSEST} == declared
    (line,) = admit(loosest, ["cuda"], ["bfloat16"])
    assert line.startswith("on cuda in bfloat16 a kernel that is wrong, ")
    assert any(f'"{mutant.name}" ({mutant.wrong}), would pass by ' in line for mutant in MUTANTS)
    assert any(f"{field} = " in line.partition("would pass by ")[2] for field in declared)


def test_waivers_over_a_feature_are_refused() -> None:
    """Every check of every case with a softcap, waived away: nothing would see a softcap that is ignored."""
    cases = [case for case, known_as in known.cases().items() if "softcap" in known_as.features]
    cases = [case for case in cases if known.cases()[case].dtype == "float16"]
    small = [case for case in cases if case.endswith(("normal", "needle")) and "/grad" not in case][:2]
    names = [*checks_of(small), *(f"d{name}.{metric}" for name in "qkv" for metric in ("zmax", "zrow", "zhead"))]
    waivers = [waiver(number, cases, check) for number, check in enumerate(names)]
    (line,) = admit(profile(waivers=waivers), ["cuda"], ["float16"])
    assert "softcap" in line or "cap-" in line
    assert "would pass by the waivers XW-" in line
    assert admit(profile(waivers=waivers), ["cpu"], ["float16"]) == []  # they are for another device


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One mutant, whose only mistake is an exponential of ten bits, and two cases that show it."""
    wrong = Arithmetic(exp_bits=10)
    mutant = Mutant("coarse", "exp has ten bits", lambda problem, _: answer(problem, wrong), lambda _: True)
    caches = admission.survivor, admission._failures, admission._panel
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(admission, "_MUTANTS", {"coarse": mutant})
    monkeypatch.setattr(admission, "OWN", (mutant,))
    monkeypatch.setattr(admission, "witnesses_in", lambda _, dtype: (CASE, OTHER))
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("coarse")
class TestBlame:
    def blamed(self, judged: Profile) -> str:
        (line,) = admit(judged, ["cuda"], ["bfloat16"])
        said = 'on cuda in bfloat16 a kernel that is wrong, "coarse" (exp has ten bits), would pass by '
        assert line.startswith(said)
        return line.removeprefix(said)

    def test_nothing_to_blame(self) -> None:
        assert admit(profile(), ["cuda"], ["bfloat16"]) == []

    def test_the_declaration_that_lets_it_live(self) -> None:
        loose = Arithmetic(exp_bits=10, partial_outputs="input", head_gradients="input")
        assert self.blamed(profile(loose)) == "exp_bits = 10"

    def test_the_waivers_that_let_it_live(self) -> None:
        lse = [check for check in checks_of([CASE]) if check.startswith("lse")]
        waivers = [waiver(number, [CASE, OTHER], check) for number, check in enumerate(lse)]
        elsewhere = waiver(99, ["attention/elsewhere"], "out.zmax")
        said = self.blamed(profile(waivers=[*waivers, elsewhere]))
        assert said == "the waivers " + ", ".join(each.id for each in waivers)

    def test_a_waiver_of_one_of_its_cases_does_not(self) -> None:
        lse = [check for check in checks_of([CASE]) if check.startswith("lse")]
        waivers = [waiver(number, [CASE], check) for number, check in enumerate(lse)]
        assert admit(profile(waivers=waivers), ["cuda"], ["bfloat16"]) == []

    def test_waivers_that_admit_less_do_not(self) -> None:
        lse = [check for check in checks_of([CASE]) if check.startswith("lse")]
        waivers = [waiver(number, [CASE, OTHER], check, observed=1.0) for number, check in enumerate(lse)]
        assert admit(profile(waivers=waivers), ["cuda"], ["bfloat16"]) == []

    def test_a_waiver_of_another_check_does_not(self) -> None:
        assert admit(profile(waivers=[waiver(1, [CASE, OTHER], "out.exact")]), ["cuda"], ["bfloat16"]) == []

    def test_an_overflow_of_its_own_is_no_news(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(problem: Problem, arithmetic: Arithmetic) -> Results:
            return {name: values + 0 * np.exp(np.float32(1e6)) for name, values in answer(problem, arithmetic).items()}

        monkeypatch.setitem(admission._MUTANTS, "coarse", Mutant("coarse", "", run, lambda _: True))
        with np.errstate(over="raise", invalid="raise"):
            assert admit(profile(), ["cuda"], ["bfloat16"]) == []


LEGITIMATE = [
    'scores = "input"',
    *extended(
        'products = "tf32"',
        "scaled_q = true",
        'sums = "truncated"',
        'partial_outputs = "input"',
        'head_gradients = "input"',
        "exp_bits = 16",
        'subnormals = "flushed"',
    ),
]


@pytest.mark.parametrize("declared", LEGITIMATE)
def test_what_right_kernels_do_can_be_declared(declared: str) -> None:
    dtype = "float32" if "tf32" in declared else "bfloat16"
    assert admit(parse(f"{HEAD}[arithmetic]\n{declared}\n"), ["cuda"], [dtype]) == []


def test_the_profile_in_the_documentation_is_admitted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```$", page, re.M | re.S)
    assert admit(parse(text), ["rocm"], ["bfloat16"]) == []
