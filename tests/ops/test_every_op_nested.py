"""Over the table of ops: a nested tensor is refused wherever it stands, whatever was called before.

torch's guard ends the process on one of the default layout, so they run in a process of their own.
"""

from __future__ import annotations

import json

from support import ROOT, run_python

from xattn.ops.table import OPS

PLACES = """
    import json
    import warnings
    import torch
    import xattn
    from ops.every_op import entries, samples
    from sample import flat, mapped
    from xattn.ops.table import OPS

    warnings.simplefilter("ignore")
    parts = [torch.randn(3, 4, 8), torch.randn(5, 4, 8)]
    strange = [torch.nested.nested_tensor(parts), torch.nested.nested_tensor(parts, layout=torch.jagged)]
    strange += [torch.eye(4).to_sparse(), torch.randn(2, 4, 4, 8).to_mkldnn()]
    refused = dict.fromkeys(OPS, 0)

    def refuse(op, function, tensors, named, wrong):
        try:
            function(*tensors, **named)
        except xattn.InvalidArgumentError:
            refused[op.name] += 1
            return
        types = [type(x) for x in tensors]
        raise SystemExit(f"not refused by {op.name}: {wrong.layout} in {types}, {list(named)}")

    for op in OPS.values():
        for device in ("cpu", "meta"):
            for name, sample in samples(op).items():
                def moved(x):
                    return x.to(device)

                tensors = [mapped(x, moved) for x in sample.tensors]
                named = {key: mapped(x, moved) for key, x in sample.named.items()}
                try:  # what was called before
                    for _ in range(2):
                        op.function(*tensors, **named)
                except xattn.InvalidArgumentError:
                    pass  # bounds that must be read, of meta tensors
                for wrong in strange:
                    for function in entries(op).values():
                        for one in flat(tensors):
                            replaced = [mapped(x, lambda y: wrong if y is one else y) for x in tensors]
                            refuse(op, function, replaced, named, wrong)
                        for key, tensor in named.items():
                            if isinstance(tensor, torch.Tensor):
                                refuse(op, function, tensors, {**named, key: wrong}, wrong)
                        everywhere = [mapped(x, lambda _: wrong) for x in tensors]
                        refuse(op, function, everywhere, named, wrong)
    print(json.dumps(refused))
"""


def test_a_nested_tensor_is_refused() -> None:
    path = [ROOT, ROOT / "plugins", ROOT / "conformance", ROOT / "tests"]
    refused = json.loads(run_python(PLACES, ROOT, path))
    assert refused.keys() == OPS.keys()
    assert min(refused.values()) > 100
