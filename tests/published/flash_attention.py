"""The parameters of flash-attention's tests of packed sequences and pages, https://github.com/Dao-AILab/flash-attention."""

from __future__ import annotations

from published.rows import Lengths, Table, equal, ragged

_AT = (
    "https://github.com/Dao-AILab/flash-attention/blob/0251105a2fb19d2957484b7f023cd8c115286ced/"
    "tests/test_flash_attn.py"
)
_HALVES = ("float16", "bfloat16")
_PAIRS: Lengths = (
    (1, 147),
    (113, 203),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 512),
    (512, 256),
    (1024, 1024),
    (1023, 1024),
    (1024, 1023),
    (2048, 2048),
)
_CAUSAL: Lengths = (
    (1, 239),
    (3, 799),
    (127, 512),
    (127, 513),
    (113, 203),
    (128, 217),
    (113, 211),
    (108, 256),
    (256, 512),
    (1023, 1024),
)
_CACHES: Lengths = (
    (1, 128),
    (1, 339),
    (3, 1024),
    (64, 800),
    (64, 256),
    (3, 799),
    (64, 2048),
    (16, 20000),
    (1, 131072),
    (16, 131072),
    (128, 128),
)
_LOCAL = (None, (60, 30))


def _headdims(*sizes: int) -> tuple[tuple[int, int], ...]:
    return tuple((size, size) for size in sizes)


TABLES = (
    Table(
        name="flash_varlen_qkvpacked",
        link=_AT + "#L716-L733",
        op="varlen_attention",
        lists={
            "lengths": [
                tuple((n - n * i // 10,) * 2 for i in range(5)) for n in (97, 128, 200, 257, 384, 512, 768, 1025, 2048)
            ],
            "heads": ((6, 6),),
            "headdims": _headdims(32, 59, 64, 80, 96, 128, 160, 192, 224, 256),
            "dtype": _HALVES,
            "causal": (False, True),
            "window": _LOCAL,
            "beside": (None, "alibi"),
            "layout": ("QKVPACKED",),
            "deterministic": (False, True),
            "grads": (False, True),
        },
    ),
    Table(
        name="flash_varlen",
        link=_AT + "#L1135-L1174",
        op="varlen_attention",
        lists={
            "lengths": ragged(4, *_PAIRS),
            "heads": ((6, 6), (6, 1), (6, 2), (4, 4), (4, 1), (4, 2)),
            "headdims": _headdims(32, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256),
            "dtype": _HALVES,
            "causal": (False, True),
            "window": _LOCAL,
            "beside": (None, "alibi"),
            "layout": ("BSHD", "KVPACKED"),
            "softcap": (None, 50.0),
            "deterministic": (False, True),
            "grads": (False, True),
        },
        rounds=3,
    ),
    Table(
        name="flash_varlen_causal",
        link=_AT + "#L1563-L1595",
        op="varlen_attention",
        lists={
            "lengths": ragged(8, *_CAUSAL, *((k, q) for q, k in _CAUSAL)),
            "heads": ((9, 9),),
            "headdims": _headdims(32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256),
            "dtype": _HALVES,
            "causal": (True,),
            "window": _LOCAL,
        },
        rounds=1,
    ),
    Table(
        name="flash_varlen_causal_paged",
        link=_AT + "#L1591",
        op="paged_attention",
        lists={
            "lengths": ragged(8, *_CAUSAL, *((k, q) for q, k in _CAUSAL)),
            "heads": ((9, 9),),
            "headdims": _headdims(32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256),
            "dtype": _HALVES,
            "causal": (True,),
            "window": (None, (60, 0)),
            "block_size": (256, 512),
            "return_lse": (False, True),
        },
        rounds=1,
    ),
    Table(
        name="flash_kvcache_paged",
        link=_AT + "#L1859-L1907",
        op="paged_attention",
        lists={
            "lengths": equal(2, *_CACHES),
            "heads": ((6, 6), (6, 1), (6, 3)),
            "headdims": _headdims(32, 59, 64, 80, 128, 256),
            "dtype": ("float16",),
            "causal": (False, True),
            "window": _LOCAL,
            "beside": (None, "alibi"),
            "block_size": (256,),
            "return_lse": (True, False),
        },
    ),
)
