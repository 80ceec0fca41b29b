"""What sdpa declares for packed sequences and pages on CUDA, which is not here: every reason, and that there is one
where another answer would come."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xattn import PagedRequest, TensorSpec, VarlenBackwardRequest, VarlenRequest
from xattn.explain import Candidate, explain_request

HALF = torch.bfloat16
SINKS, SLOPES = TensorSpec((8,), torch.float32), TensorSpec((8,), torch.float32)
SIZES: dict[str, Any] = {
    "device": "cuda", "arch": "sm_90", "dtype": HALF, "batch": 8, "max_seqlen_q": 512, "max_seqlen_k": 1024,
    "nheads": 8, "nheads_k": 2, "headdim": 64, "headdim_v": 64,
}  # fmt: skip
PAGES: dict[str, Any] = {"cache_dtype": HALF, "one_query": False, "num_blocks": 100, "block_size": 16, "causal": True}
VARLEN = (VarlenRequest, VarlenBackwardRequest)
ALL = (*VARLEN, PagedRequest)
BEYOND: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 5.0},
    "alibi_slopes": {"alibi_slopes": SLOPES},
    "top_left": {"causal": True, "align": "top_left"},
    "offset": {"window": (3, 4), "align": "offset"},
    "offsets": {"causal": True, "align": "offsets"},
    "headdim": {"headdim": 264},
    "headdim_v": {"headdim_v": 257},
    "arch": {"arch": "sm_75"},
    "batch": {"batch": 2**15},
}


def declared(kind: type[Any], changes: dict[str, Any]) -> Candidate:
    given = {**SIZES, **(PAGES if kind is PagedRequest else {}), **changes}
    (found,) = [each for each in explain_request(kind(**given)).candidates if each.name == "sdpa"]
    return found


def codes(kind: type[Any], changes: dict[str, Any]) -> list[str]:
    return [reason.code for reason in declared(kind, changes).reasons]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", BEYOND)
def test_what_the_kernel_lacks_is_declined(kind: type[Any], name: str) -> None:
    assert codes(kind, BEYOND[name]) == [name]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_declined(kind: type[Any], dtype: torch.dtype) -> None:
    own = {"cache_dtype": dtype} if kind is PagedRequest else {}
    assert codes(kind, {"dtype": dtype, **own}) == ["dtype"]


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"tree_mask": TensorSpec((99, 8), torch.bool), "causal": False}, ["tree_mask"]),
        ({"out_dtype": torch.float32}, ["out_dtype"]),
        ({"cache_dtype": torch.int8, "k_scale": SINKS, "v_scale": SINKS}, []),
        ({"requires_grad": True}, ["grad_qkv"]),
    ],
    ids=str,
)
def test_what_pages_lack(changes: dict[str, Any], reasons: list[str]) -> None:
    assert codes(PagedRequest, changes) == reasons


def test_gradients_do_not_repeat_their_bits() -> None:
    assert codes(VarlenRequest, {"deterministic": True}) == []
    assert codes(VarlenRequest, {"deterministic": True, "requires_grad": True}) == ["deterministic"]
    assert codes(VarlenBackwardRequest, {"deterministic": True}) == ["deterministic"]
    assert codes(VarlenBackwardRequest, {"inputs_require_grad": True}) == ["grad_inputs"]


SERVED: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"window": (5, None)},
    {"window": (5, 7), "dtype": torch.float16},
    {"headdim": 192, "headdim_v": 128, "arch": "sm_80"},
    {"headdim": 1, "headdim_v": 1},
    {"scale": -1.0, "causal": True},
    {"max_seqlen_q": 0},
    {"max_seqlen_q": 1, "batch": 2**14},
    # Where nothing depends on the diagonal, every alignment is the same.
    {"align": "top_left"},
]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("changes", SERVED, ids=str)
def test_what_is_served(kind: type[Any], changes: dict[str, Any]) -> None:
    own = {"cache_dtype": changes.get("dtype", HALF), "causal": changes.get("causal", False)}
    found = declared(kind, {**changes, **(own if kind is PagedRequest else {})})
    assert found.reasons == ()
    assert found.kernel.startswith("torch's flash kernel over")


@pytest.mark.parametrize(
    "changes",
    [
        {"sinks": SINKS, "return_lse": True},
        {"sinks": TensorSpec((8,), torch.float32, True), "requires_grad": True, "return_lse": True},
        {"align": "top_left", "causal": True, "shared_lengths": True},
    ],
    ids=str,
)
def test_what_is_served_of_packed_sequences(changes: dict[str, Any]) -> None:
    assert codes(VarlenRequest, changes) == []


@pytest.mark.parametrize("changes", [{"sinks": SINKS, "return_lse": True, "unseen_finite": True}, {"one_query": True}])
def test_what_is_served_of_pages(changes: dict[str, Any]) -> None:
    assert codes(PagedRequest, {"deterministic": True, **changes}) == []


@pytest.mark.parametrize("device", ["rocm", "mps", "xpu"])
@pytest.mark.parametrize("kind", ALL)
def test_other_gpus_have_a_reason(kind: type[Any], device: str) -> None:
    assert codes(kind, {"device": device, "arch": None}) == ["device"]
