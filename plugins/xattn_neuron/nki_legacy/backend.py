"""The `nki-legacy` backend."""

from __future__ import annotations

from xattn import Backend, Reason
from xattn_neuron.installation import describe, installation
from xattn_neuron.nki_legacy.attention.kernel import NkiLegacyAttention
from xattn_neuron.nki_legacy.attention.limits import availability


class NkiLegacyBackend(Backend):
    name = "nki-legacy"
    api_version = 1
    kernels = (NkiLegacyAttention(),)
    packages = ("neuronx-cc", "torch-neuronx")

    def info(self) -> dict[str, str]:
        installed = installation()
        stops = [] if isinstance(installed, Reason) else availability(installed)
        legacy = {"flash_fwd": f"cannot be used: {'; '.join(map(str, stops))}"} if stops else {}
        return {"neuron": describe(), **legacy}
