"""Since when aiter does what: the release in which a change first came out, with where to read it."""

from __future__ import annotations

import functools

from xattn_rocm.installation import Installation
from xattn_rocm.rules import CHECKED

_SOURCE = "https://github.com/ROCm/aiter/blob"

# what: (first release that has it, link). Found by reading aiter/ops/mha.py and csrc/py_itfs_ck at every release's tag.
SINCE: dict[str, tuple[str, str]] = {
    # Before, the ASM kernel is picked for headdim 128 on every arch, and fails on all but gfx942 and gfx950.
    "v3 on its archs alone": ("0.1.16", f"{_SOURCE}/v0.1.16/aiter/ops/mha.py"),
    # Before, headdim 192 beside 128 goes to ASM on gfx950 alone.
    "v3 at 192/128 on every arch": ("0.1.8", f"{_SOURCE}/v0.1.8/aiter/ops/mha.py"),
    # Before, the varlen function hands a softcap to the ASM kernel, which has none.
    "v3 refuses a softcap": ("0.1.8", f"{_SOURCE}/v0.1.8/aiter/ops/mha.py"),
    # Before, keys of 4 GiB and more wrap around in the ASM kernel for 192/128.
    "v3 refuses 4 GiB of keys": ("0.1.20", f"{_SOURCE}/v0.1.20/aiter/ops/mha.py"),
    # `sink_ptr` came in 0.1.10, but up to 0.1.17 aiter told CK of no sink, and CK's masked kernels may drop it then.
    "sinks reach CK's masked kernels": ("0.1.18", f"{_SOURCE}/v0.1.18/csrc/py_itfs_ck/mha_fwd_kernels.cu#L112"),
    "split-K": ("0.1.16", f"{_SOURCE}/v0.1.16/aiter/ops/mha.py"),
    "sink ASM": ("0.1.16", f"{_SOURCE}/v0.1.16/aiter/ops/mha.py"),
    "FlyDSL": ("0.1.16", f"{_SOURCE}/v0.1.16/aiter/ops/mha.py"),
    "OPUS": ("0.1.18", f"{_SOURCE}/v0.1.18/aiter/ops/mha.py"),
}


def has(what: str, installed: Installation) -> bool:
    """Whether this installation has the change. Without a version: what the layout's newest checked release has."""
    return _has(what, installed.version or CHECKED[installed.layout])


@functools.cache
def _cached(what: str, version: str) -> bool:
    from packaging.version import Version

    return Version(version) >= Version(SINCE[what][0])


def _has(what: str, version: str) -> bool:
    return _cached(what, version)


# torch.compile takes the answer for a constant.
_has._dynamo_marked_constant = True  # type: ignore[attr-defined]
