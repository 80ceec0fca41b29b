"""The `neuron` plugin: AWS's NKI flash attention behind the contract. `nki` calls the NKI library's attention_cte and
attention_bwd, `nki-legacy` the flash_fwd kernels from before them."""

from __future__ import annotations

import xattn
from xattn_neuron.nki.backend import NkiBackend
from xattn_neuron.nki_legacy.backend import NkiLegacyBackend


@xattn.hookimpl
def xattn_backends() -> list[xattn.Backend]:
    return [NkiBackend(), NkiLegacyBackend()]
