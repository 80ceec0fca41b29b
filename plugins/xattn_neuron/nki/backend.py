"""The `nki` backend."""

from __future__ import annotations

from xattn import Backend, Reason
from xattn_neuron.installation import describe, installation
from xattn_neuron.nki.attention.kernel import NkiAttention
from xattn_neuron.nki.attention.limits import availability


class NkiBackend(Backend):
    name = "nki"
    api_version = 1
    kernels = (NkiAttention(),)
    packages = ("nki", "neuronx-cc", "torch-neuronx")

    def info(self) -> dict[str, str]:
        installed = installation()
        stops = [] if isinstance(installed, Reason) else availability(installed)
        return {"neuron": describe(), **({"nkilib": f"cannot be used: {'; '.join(map(str, stops))}"} if stops else {})}
