"""From the arguments of `mqa_logits` to a described call. Whatever contradicts the contract stops here."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling

from xattn.dispatch.autocast import autocast_dtype, cast
from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.ops.mqa_logits.request import MqaLogitsRequest
from xattn.ops.shared import checks, logits
from xattn.plugin.devices import device_and_arch
from xattn.plugin.symbolic import bucket


def prepare(
    q: Tensor, k: Tensor, weights: Tensor, starts: Tensor, ends: Tensor, *, k_scale: Tensor | None = None
) -> Prepared:
    """Check a call against the contract and describe it. Raises InvalidArgumentError."""
    given = checks.given_tensors(k_scale=k_scale)
    dtype = autocast_dtype(q)
    described = cast(q, dtype), cast(k, dtype)
    _check(*described, weights, starts, ends, k_scale)
    device, arch = device_and_arch(q.device)
    rounded = (lambda size: size) if is_dynamo_compiling() else bucket
    request = MqaLogitsRequest(
        device=device,
        arch=arch,
        dtype=described[0].dtype,
        total_q=rounded(q.shape[0]),
        total_k=rounded(k.shape[0]),
        nheads=q.shape[1],
        headdim=q.shape[2],
        requires_grad=checks.wants_derivative(q, k, weights, *given.values()),
        k_scale=None if k_scale is None else checks.spec(k_scale),
    )
    return Prepared(request, (q, k, weights, starts, ends), given, {}, dtype, cast=2)


def _check(q: Any, k: Any, weights: Any, starts: Any, ends: Any, k_scale: Any) -> None:
    logits.check_queries(q, weights)
    checks.check_tensor("k", k)
    if k.dim() != 2:
        hint = "All heads share one key: of (total_k, 1, headdim) pass k.squeeze(1)." if k.dim() == 3 else ""
        raise InvalidArgumentError("k", f"shape {tuple(k.shape)}", "2 dimensions (total_k, headdim)", hint)
    checks.check_dense("k", k)
    checks.check_device("k", k, "q", q)
    checks.check_size("k", "headdim", k.shape[1], q.shape[2], "q")
    logits.check_keys("k", k, k_scale, q, {"(total_k,)": (k.shape[0],)})
    for name, tensor in (("starts", starts), ("ends", ends)):
        checks.check_tensor(name, tensor)
        checks.check_option(name, tensor, q, "int32", {"(total_q,)": (q.shape[0],)})


def check_values(q: Any, k: Any, weights: Any, starts: Any, ends: Any, *, k_scale: Any = None, **others: Any) -> None:
    """Check the sizes that a plan does not depend on. May run before a call is described, so it passes over what that
    rejects."""
    logits.check_free_sizes(q, weights)
    for name, tensor, model, other, rank in (
        ("starts", starts, "q", q, 3),
        ("ends", ends, "q", q, 3),
        ("k_scale", k_scale, "k", k, 2),
    ):
        if checks.has_rank(tensor, 1) and checks.has_rank(other, rank) and tensor.shape[0] != other.shape[0]:
            want = f"({other.shape[0]},), one for each row of {model}"
            raise InvalidArgumentError(name, f"shape {tuple(tensor.shape)}", want)
