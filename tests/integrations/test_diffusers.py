"""diffusers' transformers by xattn: small random models, against diffusers' own call of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from support import backend_of, plugin
from torch import Tensor

import xattn
from xattn.integrations.diffusers import register, use
from xattn.testing import fresh

pytestmark = pytest.mark.extended

Case = tuple[Any, Callable[[Any], Tensor], int]


def flux() -> Case:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 8, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([1.0]),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }
    return model, lambda m: m(**inputs).sample, 2


def wan() -> Case:
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 12, 16),
    }
    return model, lambda m: m(**inputs).sample, 4


def qwen_image() -> Case:
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    valid = torch.arange(7).expand(2, 7) < torch.tensor([[7], [4]])
    inputs = {
        "hidden_states": torch.randn(2, 16, 16),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "encoder_hidden_states_mask": valid,
        "timestep": torch.tensor([1.0, 2.0]),
        "img_shapes": [(1, 4, 4)] * 2,
    }
    return model, lambda m: m(**inputs).sample, 2


def sd3() -> Case:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 15, 32),
        "pooled_projections": torch.randn(2, 64),
        "timestep": torch.tensor([1.0, 2.0]),
    }
    return model, lambda m: m(**inputs).sample, 3


MODELS = [flux, wan, qwen_image, sd3]


class Counting(xattn.AttentionKernel):
    """Counts its calls and answers by `reference`."""

    capabilities = (
        xattn.Capabilities(
            device="cpu",
            dtypes=frozenset({torch.float32}),
            features=frozenset({"mask", "bias"}),
            grads=frozenset[Any](),
            priority={"default": 9000},
            checked="never",
        ),
    )

    def __init__(self) -> None:
        self.calls = 0

    def plan(self, request: xattn.AttentionRequest) -> Callable[..., Tensor]:
        def run(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Tensor:
            self.calls += 1
            out: Tensor = xattn.attention(q, k, v, scale=request.scale, backend="reference", **named)
            return out

        return run


@pytest.fixture
def counting() -> Iterator[Counting]:
    kernel = Counting()
    points = [*entry_points(group="xattn"), plugin("counting", backend_of("counting", kernel))]
    with fresh(points), torch.no_grad():
        yield kernel


@pytest.mark.parametrize("make", MODELS)
def test_a_model_gives_what_torch_gives_and_is_served(make: Callable[[], Case], counting: Counting) -> None:
    torch.manual_seed(0)
    model, run, calls = make()
    model.eval()
    active = _AttentionBackendRegistry.get_active_backend()
    want = run(model)
    use(model)
    got = run(model)
    assert counting.calls == calls
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    assert _AttentionBackendRegistry.get_active_backend() == active
    other, run_other, _ = make()
    run_other(other.eval())
    assert counting.calls == calls


@pytest.mark.parametrize("make", [flux, sd3])
def test_a_compiled_model_in_one_graph(make: Callable[[], Case]) -> None:
    torch.manual_seed(0)
    model, run, _ = make()
    model.eval().requires_grad_(False)
    want = run(model)
    use(model)
    got = run(torch.compile(model, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


def test_a_model_that_cannot_be_served_stays_as_it_was() -> None:
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    before = [module.processor for module in model.modules() if hasattr(module, "processor")]
    with pytest.raises(xattn.InvalidArgumentError, match="UNet2DModel with AttnProcessor2_0"):
        use(model)
    assert [module.processor for module in model.modules() if hasattr(module, "processor")] == before
    with pytest.raises(xattn.InvalidArgumentError, match="no attention module"):
        use(diffusers.AutoencoderTiny())


def test_no_keyword_is_dropped() -> None:
    register()
    register()
    xattns = AttentionBackendName("xattn")
    q, k, v = (torch.randn(2, 6, 4, 8) for _ in range(3))
    capped = dispatch_attention_fn(q, k, v, attention_kwargs={"softcap": 2.0}, backend=xattns)
    assert torch.equal(capped, xattn.attention(q, k, v, softcap=2.0))
    with pytest.raises(TypeError, match="window_size"):
        dispatch_attention_fn(q, k, v, attention_kwargs={"window_size": (2, 0)}, backend=xattns)
    with pytest.raises(xattn.InvalidArgumentError, match="enable_gqa"):
        dispatch_attention_fn(q, k[:, :, :2], v[:, :, :2], backend=xattns)
    with pytest.raises(xattn.InvalidArgumentError, match="parallel_config"):
        dispatch_attention_fn(q, k, v, backend=xattns, parallel_config=object())


@pytest.mark.parametrize("form", ["rows", "queries", "float"])
def test_masks_mean_what_they_mean_to_diffusers(form: str) -> None:
    register()
    q, k, v = (torch.randn(2, 6, 4, 8) for _ in range(3))
    mask = {"rows": torch.rand(2, 6), "queries": torch.rand(6, 6), "float": torch.randn(2, 1, 6, 6)}[form]
    mask = mask if form == "float" else mask > 0.4
    want, got = (
        dispatch_attention_fn(q, k, v, mask, backend=AttentionBackendName(name)) for name in ("native", "xattn")
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_causal_is_top_left_as_in_diffusers() -> None:
    register()
    q, k, v = torch.randn(1, 3, 2, 8), torch.randn(1, 7, 2, 8), torch.randn(1, 7, 2, 8)
    want, got = (
        dispatch_attention_fn(q, k, v, is_causal=True, backend=AttentionBackendName(name))
        for name in ("native", "xattn")
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
