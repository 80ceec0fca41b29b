"""The parameters of aiter's tests of its Triton kernels, https://github.com/ROCm/aiter, op_tests/triton_tests."""

from __future__ import annotations

from published.rows import Table, equal, ragged

_AT = "https://github.com/ROCm/aiter/blob/e4048607a535ace3a2b51ded31b1c8c2d45c0879/op_tests/triton_tests/attention/"
_PAIRS = ((1, 1), (128, 128), (32, 16), (64, 128), (2048, 2048))
_HALVES = ("float16", "bfloat16")
# Lengths of the mixed batch of test_unified_attention.py.
_MIXED = ((1, 15), (12, 133), (12, 87), (1, 133), (2, 343), (567, 275), (34, 345), (777, 777), (454, 345), (1, 134))

TABLES = (
    Table(
        name="triton_mha",
        link=_AT + "test_mha.py#L96-L104",
        op="attention",
        lists={
            "lengths": [each for batch in (1, 30) for each in equal(batch, *_PAIRS)],
            "heads": ((1, 1), (8, 8), (48, 8)),
            "headdims": ((64, 64), (128, 128)),
            "dtype": _HALVES,
            "causal": (True, False),
            "dropout_p": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2),
        },
        rounds=1,
    ),
    Table(
        name="triton_mha_varlen",
        link=_AT + "test_mha.py#L384-L393",
        op="varlen_attention",
        lists={
            "lengths": [each for batch in (1, 4, 30) for each in ragged(batch, *_PAIRS)],
            "heads": ((1, 1), (16, 16), (2, 1), (48, 8)),
            "headdims": ((8, 8), (32, 32), (128, 128)),
            "dtype": _HALVES,
            "causal": (True, False),
        },
        rounds=1,
    ),
    Table(
        name="triton_mha_backward",
        link=_AT + "test_mha.py#L454-L462",
        op="attention",
        lists={
            "lengths": equal(4, *((q, k) for q in (512, 1024, 2048) for k in (512, 1024, 2048))),
            "heads": ((32, 8), (64, 8)),
            "headdims": ((128, 128),),
            "dtype": _HALVES,
            "causal": (True, False),
            "grads": (True,),
        },
        rounds=1,
    ),
    Table(
        name="triton_mha_backward_varlen",
        link=_AT + "test_mha.py#L607-L612",
        op="varlen_attention",
        lists={
            "lengths": ragged(4, *((q, k) for q in (512, 2048) for k in (512, 2048))),
            "heads": ((32, 8), (64, 8)),
            "headdims": ((128, 128),),
            "dtype": _HALVES,
            "causal": (True, False),
            "grads": (True,),
        },
    ),
    Table(
        name="triton_sink",
        link=_AT + "test_mha_with_sink.py#L27-L32",
        op="attention",
        lists={
            "lengths": [each for batch in (1, 3) for each in equal(batch, (128, 64), (32, 128), (1024, 1024))],
            "heads": ((64, 8), (8, 1)),
            "headdims": ((64, 64), (128, 128)),
            "dtype": ("bfloat16",),
            "causal": (False, True),
            "beside": ("sinks",),
            "grads": (True, False),
        },
    ),
    Table(
        name="triton_sink_varlen",
        link=_AT + "test_mha_with_sink.py#L160-L164",
        op="varlen_attention",
        lists={
            "lengths": ragged(3, (16, 32), (128, 64), (256, 256)),
            "heads": ((4, 4), (8, 1)),
            "headdims": ((64, 64), (128, 128)),
            "dtype": ("bfloat16",),
            "causal": (False, True),
            "beside": ("sinks",),
            "grads": (True, False),
        },
    ),
    Table(
        name="triton_sink_window",
        link=_AT + "test_mha_with_sink.py#L333-L340",
        op="attention",
        lists={
            "lengths": equal(2, (64, 64), (256, 256), (128, 64), (32, 128), (1024, 1024)),
            "heads": ((8, 1), (16, 4), (28, 4)),
            "headdims": ((64, 64), (128, 128)),
            "dtype": ("bfloat16",),
            "causal": (True,),
            "window": ((4, 0), (32, 0), (64, 0)),
            "beside": ("sinks", None),
        },
    ),
    Table(
        name="triton_pe",
        link=_AT + "test_mha_with_pe.py#L23-L31",
        op="attention",
        lists={
            "lengths": [each for batch in (1, 3) for each in equal(batch, (16, 48), (4096, 4096))],
            "heads": ((1, 1), (64, 8)),
            "headdims": ((128, 64), (192, 128)),
            "dtype": ("bfloat16",),
            "causal": (True, False),
        },
    ),
    Table(
        name="triton_pe_varlen",
        link=_AT + "test_mha_with_pe.py#L97-L104",
        op="varlen_attention",
        lists={
            "lengths": ragged(3, (16, 1), (64, 128), (4096, 4096)),
            "heads": ((4, 4), (8, 1)),
            "headdims": ((96, 64), (192, 128)),
            "dtype": ("bfloat16",),
            "causal": (True, False),
        },
    ),
    Table(
        name="triton_prefill",
        link=_AT + "test_prefill_attention.py#L69-L84",
        op="varlen_attention",
        lists={
            "lengths": [
                tuple((n - n * i // 5, n - n * i // 5) for i in range(batch))
                for batch, n in ((4, 1024), (1, 8192), (1, 16384), (2, 1020), (2, 15498), (4, 1001), (1, 8081))
            ],
            "heads": ((48, 48), (24, 24), (4, 4), (16, 16), (8, 8)),
            "headdims": ((64, 64), (128, 128)),
            "dtype": ("float16",),
            "causal": (True, False),
        },
        rounds=1,
    ),
    Table(
        name="triton_pa_decode",
        link=_AT + "test_pa_decode.py#L158-L180",
        op="paged_attention",
        lists={
            "lengths": [each for batch in (1, 4) for each in equal(batch, (1, 1), (1, 57), (1, 1024))],
            "heads": ((1, 1), (8, 1)),
            "headdims": ((128, 128), (64, 64), (1, 1)),
            "dtype": ("bfloat16", "float16"),
            "block_size": (1, 4, 16, 512),
            "causal": (True,),
            "return_lse": (False,),
        },
    ),
    Table(
        name="triton_pa_prefill",
        link=_AT + "test_pa_prefill.py#L13-L18",
        op="paged_attention",
        lists={
            # Up to 1,024 new tokens after up to 1,024, drawn there.
            "lengths": [((1024, 2048), (16, 32), (333, 1001)), ((77, 1100), (640, 656), (500, 900))],
            "heads": ((64, 64), (64, 8), (64, 1)),
            "headdims": ((128, 128),),
            "dtype": ("float16",),
            "block_size": (32,),
            "window": ((127, 0), (2047, 0), (255, 0), (1023, 0), None),
            "beside": (None, "alibi"),
            "causal": (True,),
            "return_lse": (False,),
        },
        rounds=5,
    ),
    Table(
        name="triton_unified_3d",
        link=_AT + "test_unified_attention.py#L366-L391",
        op="paged_attention",
        lists={
            "lengths": [
                ((1, 1328),),
                ((1, 8192),) * 32,
                ((1, 523), (1, 37), (1, 2011)),
                ((1, 1328), (1, 523), (1, 37), (1, 2011), (1, 8192)),
            ],
            "heads": ((64, 8), (8, 1)),
            "headdims": ((64, 64),),
            "dtype": ("bfloat16",),
            "block_size": (64,),
            "unseen_finite": (True, False),
            "causal": (True,),
            "return_lse": (False,),
        },
    ),
    Table(
        name="triton_unified",
        link=_AT + "test_unified_attention.py#L537-L584",
        op="paged_attention",
        lists={
            "lengths": [((512, 512),), _MIXED],
            "heads": ((8, 8), (8, 1)),
            "headdims": ((64, 64), (128, 128), (256, 256), (512, 512)),
            "dtype": _HALVES,
            "block_size": (16, 64),
            "window": (None, (255, 0)),
            "softcap": (None, 50.0),
            "causal": (True,),
            "return_lse": (False,),
        },
        rounds=8,
    ),
    Table(
        name="triton_extend",
        link=_AT + "test_extend_attention.py#L139-L153",
        op="paged_attention",
        lists={
            # New tokens after a prefix, as one cache has both; heads share one key, as there.
            "lengths": [((512, 512), (300, 300)), ((333, 333), (200, 200), (7, 7)), ((333, 845), (120, 600), (5, 9))],
            "heads": ((4, 1), (5, 1)),
            "headdims": ((48, 32), (31, 17), (18, 17)),
            "dtype": ("float32", "bfloat16"),
            "block_size": (16,),
            "causal": (False, True),
            "return_lse": (False,),
        },
    ),
)
