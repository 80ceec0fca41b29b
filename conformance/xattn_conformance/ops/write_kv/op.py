"""The op "write_kv" as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn_conformance.array import Array
from xattn_conformance.case import DTYPES, Case
from xattn_conformance.inputs.quantised import WRITTEN, codes_of
from xattn_conformance.mutants.mutant import Mutant, Right
from xattn_conformance.ops.base import Layout, Op, Variation, Wanted
from xattn_conformance.ops.call import Call
from xattn_conformance.ops.memory import at_edge, inside, misaligned
from xattn_conformance.ops.write_kv import cases
from xattn_conformance.ops.write_kv import problem as problems
from xattn_conformance.ops.write_kv.mutants import MUTANTS, RIGHTS
from xattn_conformance.ops.write_kv.problem import CACHES, SCALES, Write
from xattn_conformance.tolerance.arithmetic import CANONICAL, Arithmetic
from xattn_conformance.tolerance.expected import Expected


class WriteOp(Op[Write]):
    """`xattn.write_kv`. Its results are the caches after the call and what lies beside them in their memory, which all
    must be met exactly."""

    name = "write_kv"

    def cases(self) -> Sequence[Case]:
        return cases.load()

    def problem(self, case: Case) -> Write:
        return problems.make(case)

    def inputs(self, problem: Write) -> Mapping[str, NDArray[Any]]:
        return problems.bits(problem)

    def digest(self, problem: Write) -> str:
        return problems.digest(problem)

    def expected(self, case: Case, problem: Write, arithmetic: Arithmetic) -> Mapping[str, Expected]:
        found = problems.results(problem, problems.written(problem))
        return {name: Expected(values, np.zeros_like(values)) for name, values in found.items()}

    def call(self, case: Case, problem: Write, device: str) -> Call:
        def tensor(values: Array) -> torch.Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(device=device, dtype=getattr(torch, problem.dtype))

        def stored(memory: Array) -> torch.Tensor:
            if problem.storage is None:
                return tensor(memory)
            codes = torch.from_numpy(codes_of(memory, problem.storage)).to(device)
            return codes.view(getattr(torch, problem.cache_dtype))

        memories = [stored(memory) for memory in problem.memories]
        caches = {
            name: memories[place.memory].as_strided(place.shape, place.strides, place.start)
            for name, place in problem.places.items()
        }
        slots = torch.from_numpy(problem.slots.astype(np.int64)).to(device)
        tensors = {"k": tensor(problem.k), **caches, "slots": slots}
        options: dict[str, Any] = {}
        if problem.v is None:
            options |= {"v": None, "v_cache": None}
        else:
            tensors["v"] = tensor(problem.v)
        for name, scale in problem.scales.items():
            tensors[name] = torch.tensor(scale, dtype=torch.float32, device=device)
        format = case.options.get("format")
        return Call(op=self.name, tensors=tensors, options=options, writes=problem.writes, format=format)

    def layout(self, name: str, tensor: torch.Tensor) -> Array:
        values: Array = tensor.detach().cpu().double().numpy()
        if name in SCALES:
            values = values[..., None]
        return values[None, None, None] if name == "around" else values.transpose(0, 2, 1, 3)

    def results(self, call: Call) -> Mapping[str, Layout]:
        caches = {name: call.tensors[name] for name in CACHES if name in call.tensors}
        memory = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in caches.values()}
        dtype = caches["k_cache"].dtype
        beside = sum(memory.values()) // dtype.itemsize - sum(each.numel() for each in caches.values())
        found = {name: Layout(tuple(call.tensors[name].shape), call.tensors[name].dtype) for name in call.writes}
        return {**found, "around": Layout((beside,), dtype)}

    def wanted(self, case: Case) -> Wanted:
        share = 2 if case.options.get("storage") == "int4" else 1
        columns = {"k_cache": case.shape["headdim"] // share, "v_cache": case.shape["headdim_v"] // share}
        scales = dict.fromkeys(SCALES if case.options.get("scale_of") in WRITTEN else (), 1)
        if case.options.get("latent"):
            del columns["v_cache"]
            scales.pop("v_scale", None)
        return Wanted(columns={**columns, **scales, "around": None}, contiguous=(), per_row=())

    def vary(self, name: str, case: Case, problem: Write, call: Call, device: str) -> Variation:
        given = call.tensors
        if name == "order":
            turned = {each: given[each].flip(0) for each in ("k", "v", "slots") if each in given}
            return _same("with the tokens in another order", replace(call, tensors={**given, **turned}))
        if name == "edge":
            placed = {each: tensor if each in call.writes else at_edge(tensor) for each, tensor in given.items()}
            return _same("with what is read at the end of its memory", replace(call, tensors=placed))
        if name == "misaligned":
            moved = replace(call, tensors={each: misaligned(tensor) for each, tensor in given.items()})
            found = _same("with every tensor one element past an aligned address", moved)
            # That element lies beside the caches, and is no result.
            return replace(found, gather=lambda found: {each: found[0][each] for each in call.writes})
        tensors = {**given, **{each: inside(given[each]) for each in ("k", "v") if each in given}}
        tensors["slots"] = torch.stack([given["slots"], torch.full_like(given["slots"], 2**40)], dim=-1)[:, 0]
        return _same("with the new tokens in other memory", replace(call, tensors=tensors))

    def mutants(self) -> Sequence[Mutant]:
        return MUTANTS

    def impostors(self) -> Sequence[Any]:
        # They judge cases, and judging knows the ops.
        from xattn_conformance.ops.write_kv.impostors import IMPOSTORS

        return IMPOSTORS

    def right_kernels(self) -> Sequence[Right]:
        return RIGHTS

    def proved(self) -> Sequence[Case]:
        return [case for case in self.cases() if case.dtype == DTYPES[case.seed % len(DTYPES)]]

    def disagreement(self, problem: Write) -> str:
        """One token after the other, and all of them at once."""
        (right,) = RIGHTS
        golden = self.expected(self.cases()[0], problem, CANONICAL)
        found = right.run(problem)
        wrong = [name for name, one in golden.items() if not np.array_equal(one.value, found[name])]
        return f"by the other oracle, {wrong[0]} is another" if wrong else ""


def _same(said: str, call: Call) -> Variation:
    return Variation(said, (call,), lambda found: dict(found[0]))
