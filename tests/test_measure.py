"""The measuring helpers on functions whose operations and memory are known. Nothing here depends on how fast."""

from __future__ import annotations

import gc
import statistics
from collections import Counter
from functools import partial

import pytest
import torch

from xattn.measure import Timing, alternate, memory, operations
from xattn.plugin.devices import card

MIB = 2**20
QUARTER = (256, 256)  # a quarter of a MiB in float32
SCALARS = 64  # bytes that torch may take for the 1 of x + 1


# ---------------------------------------------------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------------------------------------------------

KNOWN = Timing({"a": [1.0, 2.0, 30.0], "b": [2.0, 3.0, 60.0], "c": [10.0, 1.0, 1.0]}, "by hand")


def test_differences_and_ratios_are_taken_in_each_round() -> None:
    assert KNOWN.p50("a") == 2.0
    assert KNOWN.difference("b", "a") == 1.0  # of 1, 1, 30
    assert KNOWN.ratio("b", "a") == 2.0  # of 2, 1.5, 2
    # The medians of c and a differ by -1, but in two of three rounds c is slower or far faster.
    assert KNOWN.difference("c", "a") == statistics.median([9.0, -1.0, -29.0])
    assert KNOWN.difference("a", "a") == 0.0


def test_spread_is_the_10th_and_90th_percentile() -> None:
    assert Timing({"a": [float(x) for x in range(100, -1, -1)]}, "").spread("a") == (10.0, 90.0)


def test_as_dict_holds_the_numbers_and_the_method() -> None:
    document = KNOWN.as_dict("a")
    assert document["base"] == "a"
    assert document["method"] == "by hand"
    row = {"p50_us": 3.0, "p10_us": 2.0, "p90_us": 60.0, "difference_us": 1.0, "ratio": 2.0}
    assert document["candidates"]["b"] == row


def test_candidates_alternate_and_the_order_rotates() -> None:
    calls: list[str] = []
    timing = alternate({name: partial(calls.append, name) for name in "abc"}, rounds=6)
    assert {name: len(samples) for name, samples in timing.samples.items()} == {"a": 6, "b": 6, "c": 6}
    measured = calls[-18:]
    rounds = ["".join(measured[i : i + 3]) for i in range(0, 18, 3)]
    assert rounds == ["abc", "bca", "cab"] * 2
    assert len(calls) > 18, "no warm-up"


def test_samples_belong_to_their_candidate() -> None:
    big = torch.randn(400, 400)
    timing = alternate({"nothing": lambda: None, "product": lambda: big @ big}, rounds=9)
    assert timing.p50("product") > timing.p50("nothing") > 0


def test_one_thread_and_no_collection_while_measuring_and_both_back_afterwards() -> None:
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        timing = alternate({"look": lambda: seen.append((torch.get_num_threads(), gc.isenabled()))}, rounds=2)
        assert set(seen) == {(1, False)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert gc.isenabled()
    assert "1 thread" in timing.method


def test_a_candidate_that_raises_leaves_the_settings_as_they_were() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        alternate({"broken": lambda: 1 // 0}, rounds=2)
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_progress_is_told_between_rounds() -> None:
    told: list[tuple[int, int]] = []
    alternate({"nothing": lambda: None}, rounds=3, on_round=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_seconds_are_turned_into_rounds() -> None:
    from xattn.measure.timing import MAX_ROUNDS, MIN_ROUNDS

    assert len(alternate({"a": lambda: None}, seconds=0.0).samples["a"]) == MIN_ROUNDS
    assert len(alternate({"a": lambda: None}, seconds=1e9).samples["a"]) == MAX_ROUNDS


def test_the_method_says_where_and_how() -> None:
    method = alternate({"a": lambda: None, "b": lambda: None}, rounds=7).method
    for part in ("2 candidates", "perf_counter_ns", "7 rounds", torch.__version__, card(torch.device("cpu"))):
        assert part in method


@pytest.mark.parametrize("measure", [lambda: alternate({}, device="meta"), lambda: memory(lambda: None, "meta")])
def test_other_devices_are_refused(measure: object) -> None:
    with pytest.raises(ValueError, match="cpu and cuda alone, not on meta"):
        measure()  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def test_memory_of_a_result() -> None:
    used = memory(lambda: torch.empty(MIB, dtype=torch.uint8))
    assert (used.peak, used.kept) == (MIB, MIB)


def test_memory_that_is_freed_counts_in_the_peak_alone() -> None:
    x = torch.randn(QUARTER)

    def call() -> torch.Tensor:
        first = x + 1
        second = first + 1
        del first
        return second.sum()

    used = memory(call)
    assert MIB // 2 <= used.peak < MIB // 2 + SCALARS
    assert used.kept == 4


def test_memory_one_after_the_other_is_no_sum() -> None:
    def call() -> None:
        for _ in range(5):
            torch.empty(MIB, dtype=torch.uint8)

    assert memory(call).peak == MIB


def test_views_take_no_memory() -> None:
    x = torch.randn(QUARTER)
    assert memory(lambda: x.t()[::2].unsqueeze(0)).peak == 0


def test_freeing_what_was_there_before_hides_nothing() -> None:
    held = [torch.empty(8 * MIB, dtype=torch.uint8)]

    def call() -> torch.Tensor:
        held.clear()
        return torch.empty(MIB, dtype=torch.uint8)

    assert memory(call).peak == MIB


def test_what_an_earlier_measurement_saw_is_forgotten() -> None:
    """Torch's profiler remembers addresses from one use to the next and subtracts what is freed there."""

    def sixty_four() -> list[torch.Tensor]:
        return [torch.empty(2**16, dtype=torch.uint8) for _ in range(64)]

    memory(sixty_four)
    held = sixty_four()  # where the others were
    used = memory(held.clear)
    assert (used.peak, used.kept) == (0, 0)


def test_a_kernels_own_buffers_count() -> None:
    """Flash attention on the CPU works in buffers of its own, which no dispatch mode sees."""
    q = torch.randn(1, 8, 512, 64)
    used = memory(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert used.kept == q.numel() * 4
    assert used.peak > used.kept + 8 * 512 * 4  # the output and the lse are not all


def test_memory_of_a_backward_pass() -> None:
    x = torch.randn(QUARTER, requires_grad=True)
    upstream = torch.ones(QUARTER)
    used = memory(lambda: torch.autograd.grad(x.exp(), x, upstream))
    # exp(x), kept for the backward pass, and the gradient
    assert MIB // 2 <= used.peak < MIB // 2 + SCALARS
    assert used.kept == MIB // 4


# ---------------------------------------------------------------------------------------------------------------------
# Operations
# ---------------------------------------------------------------------------------------------------------------------

X = torch.randn(4, 6)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: X.clone(), {"clone": 1}),
        (lambda: X.t().contiguous(), {"clone": 1}),
        (lambda: X.contiguous(), {}),
        (lambda: X.t().reshape(24), {"clone": 1}),
        (lambda: X.reshape(24), {}),
        (lambda: torch.cat([X, X]), {"cat": 1}),
        (lambda: X.to(torch.float64), {"_to_copy": 1}),
        (lambda: X.to(torch.float32), {}),
        (lambda: torch.empty(4, 6).copy_(X), {"copy_": 1}),
        (lambda: X.t().unsqueeze(0).expand(3, 6, 4), {}),
        (lambda: torch.where(X > 0, X, X), {}),
        (lambda: X.clone() @ X.t().clone(), {"clone": 2}),
    ],
)
def test_materialising(call: object, expected: dict[str, int]) -> None:
    assert operations(call).materialising() == expected  # type: ignore[arg-type]


def test_gathering_is_reported_apart() -> None:
    rows = torch.tensor([0, 2])
    ran = operations(lambda: torch.where(X > 0, X, X)[rows] + X.index_select(0, rows))
    assert ran.gathering() == {"where": 1, "index": 1, "index_select": 1}
    assert ran.materialising() == {}


def test_forward_and_backward_are_counted_apart() -> None:
    class CopiesGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            return grad.clone() * 2

    x = torch.randn(4, 6, requires_grad=True)
    ran = operations(lambda: CopiesGradient.apply(x), [x])  # type: ignore[no-untyped-call]
    assert ran.forward == Counter(mul=1)
    assert ran.backward == Counter(clone=1, mul=1)
    assert ran.materialising() == {"clone": 1}
    (result,), (grad,) = ran.results, ran.grads
    assert torch.equal(result, x * 2)
    assert grad is not None
    assert grad.shape == x.shape


def test_an_input_that_is_not_reached_has_no_gradient() -> None:
    x, y = (torch.randn(3, requires_grad=True) for _ in range(2))
    ran = operations(lambda: [x + 1, x * 2], [x, y])
    assert len(ran.results) == 2
    assert ran.grads[0] is not None
    assert ran.grads[1] is None


def test_nothing_is_counted_outside() -> None:
    ran = operations(lambda: X + 1)
    X.clone()
    assert ran.forward == {"add": 1}
    assert ran.backward == {}
