"""DTensors: a call that is sharded over batch rows or heads is the same call of each rank's own part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xattn.dispatch.op import Prepared
from xattn.errors import InvalidArgumentError
from xattn.plugin.request import Request, TensorSpec
from xattn.plugin.tensors import flat, is_dtensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# torch.distributed.tensor takes a second to import; where a DTensor is, it was.

# The sizes over which a call may be cut, by the name of the one that q has.
_AXES = {"batch": ("batch",), "nheads": ("nheads", "nheads_k")}


def is_sharded(prepared: Prepared) -> bool:
    return any(map(is_dtensor, flat([*prepared.tensors, *prepared.given.values()])))


def replicated(tensors: Sequence[Any], mesh: Any = None) -> list[Any]:
    """The tensors of a call whose kernels are torch's own operators, which serve DTensors alone: a plain one is the
    same on every rank."""
    from torch.distributed.tensor import DTensor, Replicate

    if mesh is None:
        mesh = next(each.device_mesh for each in flat(tensors) if isinstance(each, DTensor))
    found: list[Any] = []
    for each in tensors:
        if isinstance(each, (list, tuple)):
            each = replicated(each, mesh)
        elif isinstance(each, Tensor) and not is_dtensor(each):
            each = DTensor.from_local(each, mesh, [Replicate()] * mesh.ndim, run_check=False)
        found.append(each)
    return found


@dataclass(frozen=True, repr=False, eq=False)
class Sharding:
    """Over what q is cut by each dimension of the mesh: "batch", "nheads", or nothing."""

    mesh: Any
    axes: tuple[str | None, ...]

    @classmethod
    def of(cls, prepared: Prepared) -> Sharding:
        """Raises InvalidArgumentError for a q that is cut over anything else."""
        (name, names), q = next(iter(_dims(prepared.request).items())), prepared.tensors[0]
        if not is_dtensor(q):
            raise InvalidArgumentError(name, "a plain tensor beside a DTensor", "a DTensor of the same mesh")
        return cls(q.device_mesh, tuple([_axis(name, names, place) for place in q.placements]))

    def local(self, prepared: Prepared) -> Prepared:
        """This rank's part of the call. Raises InvalidArgumentError for tensors that are cut another way than q."""
        request, dims = prepared.request, _dims(prepared.request)
        self._check_heads(request)
        tensors = tuple(
            [self._part(name, tensor, dims[name]) for name, tensor in zip(dims, prepared.tensors, strict=False)]
        )
        given = {
            name: self._part(name, each, dims[name]) if isinstance(each, Tensor) else each
            for name, each in prepared.given.items()
        }
        return replace(prepared, request=_described(request, tensors, given), tensors=tensors, given=given)

    def _check_heads(self, request: Any) -> None:
        """Each rank has whole groups: as many query heads as any other, and their key-value heads."""
        ranks = math.prod([self.mesh.size(i) for i, axis in enumerate(self.axes) if axis == "nheads"])
        for name, size, heads in (("q", "nheads", request.nheads), ("k", "nheads_k", request.nheads_k)):
            if heads % ranks != 0 and (size, heads) != ("nheads_k", 1):
                want = f"a multiple of {ranks}, the ranks that share the heads"
                raise InvalidArgumentError(name, f"{size} {heads}", want)

    def whole(self, answer: Any, request: Request, tensors: Sequence[Any]) -> Any:
        """The DTensors of which a rank's answer is its part. request, tensors: of the whole call."""
        want = request.results(tensors)
        if isinstance(want, TensorSpec):
            return self._whole("out", answer, want, request)
        names = list(request.dims)[-len(want) :]
        parts = [self._whole(*each, request) for each in zip(names, answer, want, strict=True)]
        return type(want)._make(parts) if hasattr(want, "_make") else tuple(parts)

    def _whole(self, name: str, part: Tensor, spec: TensorSpec, request: Request) -> DTensor:
        from torch.distributed.tensor import DTensor, Partial

        placements = self._placements(spec.shape, request.dims[name].split())
        if name in request.summed:  # over query heads, of a key-value head that is on every rank
            for i, axis in enumerate(self.axes):
                if axis == "nheads" and placements[i].is_replicate():
                    placements[i] = Partial()
        strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
        return DTensor.from_local(
            part.contiguous(),
            self.mesh,
            placements,
            run_check=False,
            shape=torch.Size(spec.shape),
            stride=tuple(strides),
        )

    def _placements(self, shape: Sequence[int], names: Sequence[str]) -> list[Any]:
        """How a tensor is cut where q is cut so. names: of its sizes, of which it may lack the first ones."""
        from torch.distributed.tensor import Replicate, Shard

        names = names[len(names) - len(shape) :]
        found: list[Any] = []
        for axis in self.axes:
            of_axis = _AXES[axis] if axis is not None else ()
            places = [i for i, name in enumerate(names) if name in of_axis and shape[i] != 1]
            found.append(Shard(places[0]) if places else Replicate())
        return found

    def _part(self, name: str, tensor: Tensor, names: Sequence[str]) -> Tensor:
        """This rank's part of a tensor. A plain one is the same on every rank, and so is a replicated one."""
        from torch.distributed.tensor import DTensor, Partial, Replicate

        wanted = self._placements(tensor.shape, names)
        if not is_dtensor(tensor):
            tensor = DTensor.from_local(tensor, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        given: Any = tensor
        if given.device_mesh != self.mesh:
            raise InvalidArgumentError(name, "a DTensor of another mesh", "the mesh of q")
        for place, want in zip(given.placements, wanted, strict=True):
            if place not in (want, Replicate()):
                hint = f"Pass {name}.redistribute(placements={tuple(wanted)})."
                got = f"placements {given.placements}"
                raise InvalidArgumentError(name, got, f"{tuple(wanted)}, as q is cut", hint)
        # Each rank has a share of the gradient of what it shares with others.
        shares = [
            Partial() if axis is not None and place.is_replicate() else place
            for axis, place in zip(self.axes, wanted, strict=True)
        ]
        part: Tensor = given.redistribute(self.mesh, wanted).to_local(grad_placements=shares)
        return part


def _axis(name: str, names: Sequence[str], place: Any) -> str | None:
    if place.is_replicate():
        return None
    cut: str | None = names[place.dim] if place.is_shard() else None
    if cut not in _AXES:
        got = f"a DTensor cut over {cut}" if cut is not None else f"a DTensor of placement {place}"
        hint = f"Pass {name}.redistribute(placements=[Shard({names.index('nheads')})])."
        want = "one that is cut over " + " or ".join(axis for axis in _AXES if axis in names)
        raise InvalidArgumentError(name, got, want, hint)
    return cut


def _dims(request: Request) -> dict[str, list[str]]:
    return {name: sizes.split() for name, sizes in request.dims.items()}


def _described(request: Request, tensors: Sequence[Tensor], given: Mapping[str, Any]) -> Request:
    """The request of a rank's tensors."""
    changed: dict[str, Any] = {}
    for (_, names), tensor in zip(_dims(request).items(), tensors, strict=False):
        for name, size in zip(names, tensor.shape, strict=False):
            if name in ("batch", "nheads", "nheads_k") and hasattr(request, name):
                changed[name] = size
    for name, tensor in given.items():
        spec = getattr(request, name, None)
        if isinstance(spec, TensorSpec):
            changed[name] = replace(spec, shape=tuple(tensor.shape))
    return replace(request, **changed)
