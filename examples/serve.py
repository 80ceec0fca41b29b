"""Serve a stream of requests with a small Llama-shaped model of random weights: continuous batching over a paged cache.

    python examples/serve.py [--requests 24] [--check 24]

Requests come at random, with prompts of random lengths behind a prefix that all share. Each step takes up to a budget
of tokens: one of every request that is generating, and chunks of prompts with what is left. All layers of a step share
one PagedBatch. At the end some requests are generated one by one over a padded cache, and the tokens must be equal.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import xattn
from xattn.cache import PagedBatch, PagedKVCache, StaticKVCache

LAYERS, DIM, NHEADS, NHEADS_K, HEADDIM, VOCABULARY = 4, 256, 8, 2, 32, 1000
BLOCK_SIZE, BLOCKS, PREFIX = 16, 256, 40
MOST_TOKENS, MOST_SEQUENCES = 64, 16  # of one step


class Model:
    """Llama's shape: RMSNorm, rotary positions, grouped heads, a gated MLP. Weights by chance, tied at both ends."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def weight(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) / columns**0.5

        self.embedding = weight(VOCABULARY, DIM) * 4
        sizes = {"q": (NHEADS * HEADDIM, DIM), "k": (NHEADS_K * HEADDIM, DIM), "v": (NHEADS_K * HEADDIM, DIM)}
        sizes |= {"o": (DIM, NHEADS * HEADDIM), "gate": (2 * DIM, DIM), "up": (2 * DIM, DIM), "down": (DIM, 2 * DIM)}
        self.layers = [{name: weight(*size) for name, size in sizes.items()} for _ in range(LAYERS)]
        frequencies = 10000.0 ** -(torch.arange(0, HEADDIM, 2) / HEADDIM)
        self.angles = torch.arange(BLOCKS * BLOCK_SIZE).unsqueeze(1) * frequencies

    def __call__(self, tokens: list[int], positions: list[int], attend: Attend) -> Tensor:
        """The next token after each of the given ones: (tokens,)."""
        x, angles = self.embedding[torch.tensor(tokens)], self.angles[torch.tensor(positions)]
        for number, layer in enumerate(self.layers):
            y = F.rms_norm(x, (DIM,))
            q, k, v = ((y @ layer[name].t()).unflatten(1, (-1, HEADDIM)) for name in "qkv")
            q, k = (
                each[0] for each in xattn.apply_rotary(q[None], k[None], angles.cos(), angles.sin(), interleaved=False)
            )
            x = x + attend(number, q, k, v).flatten(1) @ layer["o"].t()
            y = F.rms_norm(x, (DIM,))
            x = x + (F.silu(y @ layer["gate"].t()) * (y @ layer["up"].t())) @ layer["down"].t()
        return (F.rms_norm(x, (DIM,)) @ self.embedding.t()).argmax(-1)


class Attend:
    """Attention of one layer, which keeps the new keys and values."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass
class Paged(Attend):
    """Over the pages of a step's sequences."""

    cache: PagedKVCache
    batch: PagedBatch

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pool = self.cache.k[layer], self.cache.v[layer]
        assert self.batch.slots is not None
        xattn.write_kv(k, v, *pool, self.batch.slots[: len(k)])
        return xattn.paged_attention(q, *pool, self.batch, unseen_finite=True)


@dataclass
class Alone(Attend):
    """Over a padded cache of one sequence."""

    caches: list[StaticKVCache]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache = self.caches[layer]
        cache.append(k[None], v[None])
        return xattn.attention(q[None], cache.k, cache.v, causal=True, seqlens_k=cache.seqlens_k)[0]


@dataclass
class Request:
    """tokens: the prompt, and what was generated so far. seen: how many of them lie in the cache."""

    number: int
    tokens: list[int]
    wanted: int
    seen: int = 0
    generated: list[int] = field(default_factory=list)


class Server:
    def __init__(self, model: Model, prefix: list[int]) -> None:
        self.model, self.prefix = model, prefix
        self.cache = PagedKVCache(BLOCKS, BLOCK_SIZE, NHEADS_K, HEADDIM, num_layers=LAYERS)
        pages = BLOCKS // MOST_SEQUENCES
        self.batch = PagedBatch(
            torch.zeros(MOST_SEQUENCES, pages, dtype=torch.int32),
            torch.zeros(MOST_SEQUENCES, dtype=torch.int32),
            torch.zeros(MOST_SEQUENCES + 1, dtype=torch.int32),
            slots=torch.full((MOST_TOKENS,), -1),
        )
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        # The prefix is computed once; every request begins with its pages.
        shared = Request(-1, list(prefix), 1)
        self.cache.allocate(shared.number)
        self._run([(shared, len(prefix))])

    def step(self) -> tuple[int, list[Request]]:
        """Run one step. Returns how many tokens it computed, and the requests that are done."""
        while self.waiting and len(self.running) < MOST_SEQUENCES:
            request = self.waiting.popleft()
            self.cache.fork(-1, request.number)
            request.seen = len(self.prefix)
            self.running.append(request)
        budget, work = MOST_TOKENS, []
        # Those that generate need one token each; prompts share the rest.
        for request in sorted(self.running, key=lambda each: len(each.tokens) - each.seen):
            count = min(len(request.tokens) - request.seen, budget)
            if count:
                work.append((request, count))
                budget -= count
        self._run(work)
        done = [request for request in self.running if len(request.generated) >= request.wanted]
        for request in done:
            self.cache.free(request.number)
            self.running.remove(request)
        return MOST_TOKENS - budget, done

    def _run(self, work: list[tuple[Request, int]]) -> None:
        """The next so many tokens of each request, in one pass through the model."""
        counts = [count for _, count in work]
        slots = [slot for request, count in work for slot in self.cache.append(request.number, count)]
        self.batch.update_(*self.cache.lists([request.number for request, _ in work], counts), slots=slots)
        tokens = [token for request, count in work for token in request.tokens[request.seen : request.seen + count]]
        positions = [request.seen + i for request, count in work for i in range(count)]
        following = self.model(tokens, positions, Paged(self.cache, self.batch)).tolist()
        end = 0
        for request, count in work:
            end += count
            request.seen += count
            if request.seen == len(request.tokens):
                request.tokens.append(following[end - 1])
                request.generated.append(following[end - 1])


def one_by_one(model: Model, prompt: list[int], wanted: int) -> list[int]:
    """The tokens that a prompt alone leads to."""
    room = len(prompt) + wanted
    attend = Alone([StaticKVCache(1, room, NHEADS_K, HEADDIM) for _ in range(LAYERS)])
    tokens, seen, found = list(prompt), 0, list[int]()
    while len(found) < wanted:
        following = model(tokens[seen:], list(range(seen, len(tokens))), attend)
        seen = len(tokens)
        tokens.append(int(following[-1]))
        found.append(tokens[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=24, help="how many come [%(default)s]")
    parser.add_argument("--check", type=int, default=24, help="how many are generated again, one by one [%(default)s]")
    arguments = parser.parse_args()

    draw, model = random.Random(0), Model()
    prefix = [draw.randrange(VOCABULARY) for _ in range(PREFIX)]
    prompts = [
        prefix + [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 90))] for _ in range(arguments.requests)
    ]
    coming = deque(Request(i, list(prompt), draw.randint(4, 32)) for i, prompt in enumerate(prompts))
    done: list[Request] = []
    with torch.inference_mode():
        server, started, computed, steps = Server(model, prefix), time.perf_counter(), 0, 0
        while len(done) < arguments.requests:
            for _ in range(min(draw.randint(0, 3), len(coming))):
                server.waiting.append(coming.popleft())
            if not (server.waiting or server.running):
                continue
            count, finished = server.step()
            computed, steps, done = computed + count, steps + 1, done + finished
            rate = computed / (time.perf_counter() - started)
            told = f"step {steps}: {len(server.running)} running, {len(done)} done, {rate:,.0f} tokens/s"
            print(f"\r{told:<70}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        pages = server.cache.num_blocks - server.cache.free_blocks
        print(f"{len(done)} requests, {computed:,} tokens in {steps} steps; {pages} pages left in use, by the prefix")
        for request in sorted(done, key=lambda each: each.number)[: arguments.check]:
            alone = one_by_one(model, prompts[request.number], request.wanted)
            if alone != request.generated[: request.wanted]:
                raise SystemExit(f"request {request.number}: served {request.generated}, alone {alone}")
    print(f"{min(arguments.check, len(done))} of them generated one by one: the same tokens")


if __name__ == "__main__":
    main()
