"""The parameters of aiter's op tests, https://github.com/ROCm/aiter, op_tests/."""

from __future__ import annotations

from published.rows import Lengths, Table, equal, ragged

_AT = "https://github.com/ROCm/aiter/blob/e4048607a535ace3a2b51ded31b1c8c2d45c0879/op_tests/"
_HALVES = ("float16", "bfloat16")
_SAME = tuple((d, d) for d in (32, 40, 59, 64, 96, 111, 128, 160, 192, 224, 256))
_PAIRS: Lengths = (
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
# A window there has two numbers below seqlen_k, drawn.
_LOCAL = (None, (60, 30))
_CONTEXTS = (1, 26, 128, 4097)

TABLES = (
    Table(
        name="mha",
        link=_AT + "test_mha.py#L163-L222",
        op="attention",
        lists={
            "lengths": equal(5, *_PAIRS),
            "headdims": (*_SAME, (192, 128)),
            "dtype": _HALVES,
            # Six heads there; a group of 8 needs the 16 of the command line.
            "heads": ((6, 6), (16, 2)),
            "causal": (False, True),
            "window": _LOCAL,
            "layout": ("BSHD", "BHSD", "SBHD", "KVPACKED"),
            "beside": (None, "bias", "alibi"),
            "deterministic": (True, False),
            "grads": (False, True),
            "dropout_p": (0.0, 0.0, 0.0, 0.0, 0.17),
        },
        rounds=3,
    ),
    Table(
        name="mha_varlen",
        link=_AT + "test_mha_varlen.py#L379-L438",
        op="varlen_attention",
        lists={
            "lengths": ragged(4, (1, 147), *_PAIRS),
            "headdims": _SAME,
            "dtype": _HALVES,
            "heads": ((9, 9), (16, 2)),
            "causal": (False, True),
            "window": _LOCAL,
            "layout": ("BSHD", "KVPACKED"),
            "beside": (None, "alibi"),
            "deterministic": (True, False),
            "grads": (False, True),
        },
        rounds=3,
    ),
    Table(
        name="fmha_with_sink_varlen",
        link=_AT + "test_fmha_fwd_with_sink_varlen_asm.py#L184-L215",
        op="varlen_attention",
        lists={
            "lengths": [
                tuple((n, n) for n in lengths)
                for lengths in ([256], [128, 256, 384], [100, 200, 300], [256, 512], [256, 512, 768], [512, 1024])
            ],
            "heads": ((64, 8), (64, 4)),
            "headdims": ((64, 64), (128, 128)),
            "dtype": ("bfloat16",),
            "causal": (True, False),
            "beside": ("sinks",),
        },
    ),
    Table(
        name="pa",
        link=_AT + "test_pa.py#L119-L129",
        op="paged_attention",
        lists={
            "lengths": equal(7, *((1, n) for n in (7, 26, 57, 66, 109, 128, 257, 282, 4097))),
            "heads": ((4, 1), (8, 1), (32, 8), (40, 40), (64, 8)),
            "headdims": tuple((d, d) for d in (64, 80, 96, 112, 120, 128, 192, 256)),
            "dtype": _HALVES,
            "block_size": (16, 32),
            "beside": (None, "alibi"),
            "causal": (True,),
            "return_lse": (False,),
        },
    ),
    Table(
        name="pa_ragged",
        link=_AT + "test_pa_ragged.py#L656-L669",
        op="paged_attention",
        lists={
            "lengths": [each for batch in (1, 3, 31, 128) for each in equal(batch, *((1, n) for n in _CONTEXTS))],
            "heads": ((8, 1), (4, 2), (32, 4)),
            "headdims": ((64, 64), (128, 128)),
            "dtype": _HALVES,
            "block_size": (1, 16, 32),
            "layout": ("NHD", "HND"),
            "softcap": (None, 30.0),
            "beside": (None, "alibi"),
            "causal": (True,),
            "return_lse": (False,),
        },
        rounds=1,
    ),
    Table(
        name="pa_v1_sliding_window",
        link=_AT + "test_pa_v1.py#L593-L597",
        op="paged_attention",
        lists={
            "lengths": [each for batch in (1, 3, 31) for each in equal(batch, *((1, n) for n in _CONTEXTS))],
            "heads": ((8, 1), (32, 4)),
            "headdims": ((128, 128),),
            "dtype": _HALVES,
            "block_size": (16,),
            # Ten keys there: the query's own and nine before it.
            "window": ((9, 0), None),
            "beside": (None, "alibi"),
            "causal": (True,),
            "return_lse": (False,),
        },
        rounds=1,
    ),
    Table(
        name="pa_mtp",
        link=_AT + "test_pa_mtp.py#L482-L540",
        op="paged_attention",
        lists={
            "lengths": [
                ((queries, keys),) * 128
                for queries, keys in zip(
                    (1, 2, 3, 4) * 3, (7, 26, 57, 66, 109, 128, 257, 282, 4097, 16384, 7, 26), strict=True
                )
            ],
            "heads": ((5, 1), (8, 1), (10, 1)),
            "headdims": ((128, 128),),
            "dtype": ("bfloat16",),
            "block_size": (16,),
            "causal": (True,),
            "return_lse": (False,),
        },
        rounds=1,
    ),
    Table(
        name="batch_prefill",
        link=_AT + "test_batch_prefill.py#L869-L894",
        op="paged_attention",
        lists={
            "lengths": [
                each
                for batch in (1, 3, 7)
                for each in equal(batch, (128, 128), (1024, 1024), (1023, 1024), (1024, 1023), (2048, 2048))
            ],
            "heads": ((8, 1), (16, 1), (6, 1), (3, 1)),
            "headdims": ((128, 128), (256, 256)),
            "dtype": _HALVES,
            # 1 is that of the linear layout, line 630.
            "block_size": (1, 16, 1024),
            "softcap": (None, 30.0),
            "causal": (False, True),
            "return_lse": (False, True),
        },
        rounds=1,
    ),
)
