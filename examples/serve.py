"""Serve a stream of requests with a small Llama-shaped model of random weights: continuous batching over a paged cache.

    python examples/serve.py [--device cuda] [--dtype float16] [--kv int8] [--requests 24] [--check 24]

Requests come at random, with prompts of random lengths behind a prefix that all share. Each step takes up to a budget
of tokens: one of every request that is generating, and chunks of prompts with what is left. All layers of a step share
one PagedBatch. A step in which every request generates has tensors that stay where they are; on a GPU it is captured
once as a CUDA graph, and replayed with other lengths, pages and tokens.

At the end some requests are generated one by one over a padded cache, and the tokens must be equal. Keys and values are
stored and attended in --dtype, float32 on a CPU and float16 on a GPU by default. What 16 bits round may turn the order
of two logits that are all but equal, and the tokens after them are others; there a token must be the best of the model
alone in float32, or all but equal to it.

With --kv keys and values are stored in 8 or 4 bits, with a scale for each head of each token. Then the tokens are held
to those of the model alone over such a cache, and what the storage costs is said: the bytes of a token, and how the
logits after the served tokens agree with those of the model that stores its keys and values in float32.
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

# Logits that are apart by less than so many of their standard deviations are all but equal, in 16 bits.
NEAR = 0.05
KV = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.uint8}
LAYERS, DIM, NHEADS, NHEADS_K, HEADDIM, VOCABULARY = 4, 256, 8, 2, 32, 1000
BLOCK_SIZE, BLOCKS, PREFIX = 16, 256, 40
MOST_TOKENS, MOST_SEQUENCES = 64, 16  # of one step


class Model:
    """Llama's shape: RMSNorm, rotary positions, grouped heads, a gated MLP. Weights by chance, in float32."""

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)

        def weight(rows: int, columns: int) -> Tensor:
            return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(device)

        self.embedding, self.head = weight(VOCABULARY, DIM) * 4, weight(VOCABULARY, DIM) * 4
        sizes = {"q": (NHEADS * HEADDIM, DIM), "k": (NHEADS_K * HEADDIM, DIM), "v": (NHEADS_K * HEADDIM, DIM)}
        sizes |= {"o": (DIM, NHEADS * HEADDIM), "gate": (2 * DIM, DIM), "up": (2 * DIM, DIM), "down": (DIM, 2 * DIM)}
        self.layers = [{name: weight(*size) for name, size in sizes.items()} for _ in range(LAYERS)]
        frequencies = 10000.0 ** -(torch.arange(0, HEADDIM, 2) / HEADDIM)
        self.angles = (torch.arange(BLOCKS * BLOCK_SIZE).unsqueeze(1) * frequencies).to(device)

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Logits after each of the tokens (tokens,), at positions (tokens,): (tokens, vocabulary)."""
        x, angles = self.embedding[tokens], self.angles[positions]
        for number, layer in enumerate(self.layers):
            y = F.rms_norm(x, (DIM,))
            q, k, v = ((y @ layer[name].t()).unflatten(1, (-1, HEADDIM)) for name in "qkv")
            q, k = (
                each[0] for each in xattn.apply_rotary(q[None], k[None], angles.cos(), angles.sin(), interleaved=False)
            )
            x = x + attend(number, q, k, v).flatten(1) @ layer["o"].t()
            y = F.rms_norm(x, (DIM,))
            x = x + (F.silu(y @ layer["gate"].t()) * (y @ layer["up"].t())) @ layer["down"].t()
        return F.rms_norm(x, (DIM,)) @ self.head.t()


class Attend:
    """Attention of one layer, which keeps the new keys and values. Float32 in and out."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass
class Paged(Attend):
    """Over the pages of a step's sequences, in dtype."""

    cache: PagedKVCache
    batch: PagedBatch
    dtype: torch.dtype

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert self.batch.slots is not None
        q, k, v = (x.to(self.dtype) for x in (q, k, v))
        self.cache.write(layer, k, v, self.batch.slots[: len(k)])
        pool, scales = (self.cache.k[layer], self.cache.v[layer]), self.cache.scales(layer)
        return xattn.paged_attention(q, *pool, self.batch, unseen_finite=True, **scales).float()


class Alone(Attend):
    """Over a padded cache of one sequence, for so many tokens, stored in a dtype."""

    def __init__(self, tokens: int, device: str, stored: torch.dtype = torch.float32) -> None:
        self.caches = [StaticKVCache(1, tokens, NHEADS_K, HEADDIM, dtype=stored, device=device) for _ in range(LAYERS)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache = self.caches[layer]
        cache.append(k[None], v[None])
        if scales := cache.scales():
            return xattn.paged_attention(q, cache.k, cache.v, cache.paged(len(q)), unseen_finite=True, **scales)
        return xattn.attention(q[None], cache.k, cache.v, causal=True, seqlens_k=cache.seqlens_k)[0]


@dataclass
class Request:
    """tokens: the prompt, and what was generated so far. seen: how many of them lie in the cache."""

    number: int
    tokens: list[int]
    wanted: int
    seen: int = 0
    generated: list[int] = field(default_factory=list)


def batch_of(device: str, tokens: int, starts: bool) -> PagedBatch:
    """Room for a step of so many tokens. Without `starts` every sequence has one query."""

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros(sizes, dtype=torch.int32, device=device)

    return PagedBatch(
        zeros(MOST_SEQUENCES, BLOCKS // MOST_SEQUENCES), zeros(MOST_SEQUENCES),
        zeros(MOST_SEQUENCES + 1) if starts else None, slots=torch.full((tokens,), -1, device=device),
    )  # fmt: skip


class Decode:
    """A step of one token a sequence: the same tensors and sizes at every step, filled up with sequences of padding,
    which have no keys and write nothing. On a GPU it is a CUDA graph from the second step on."""

    def __init__(self, model: Model, cache: PagedKVCache, device: str, dtype: torch.dtype) -> None:
        self.model, self.device = model, device
        self.batch = batch_of(device, MOST_SEQUENCES, starts=False)
        self.attend = Paged(cache, self.batch, dtype)
        self.tokens, self.positions = (torch.zeros(MOST_SEQUENCES, dtype=torch.long, device=device) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.best: Tensor | None = None

    def __call__(
        self, tokens: list[int], positions: list[int], lists: tuple[list[list[int]], list[int], None], slots: list[int]
    ) -> list[int]:
        """The best next token of each sequence. lists: its pages and length, as of `PagedKVCache.lists`."""
        # A bound is a number, which a graph keeps: the most that a sequence may have.
        self.batch.update_(*lists, slots=slots, max_seqlen_k=self.batch.block_table.shape[1] * BLOCK_SIZE)
        for static, values in ((self.tokens, tokens), (self.positions, positions)):
            static[: len(values)] = torch.tensor(values)
        if self.graph is not None:
            self.graph.replay()
        elif self.best is None or self.device == "cpu":
            self._run()  # the first step makes all plans, which a capture must not
        else:
            self._capture()
        assert self.best is not None
        return self.best[: len(tokens)].tolist()

    def _run(self) -> None:
        self.best = self.model(self.tokens, self.positions, self.attend).argmax(-1)

    def _capture(self) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        graph.replay()  # what is captured is not computed yet
        self.graph = graph


class Server:
    """dtype: of attention. stored: of keys and values."""

    def __init__(self, model: Model, prefix: list[int], device: str, dtype: torch.dtype, stored: torch.dtype) -> None:
        self.model, self.prefix, self.device, self.dtype = model, prefix, device, dtype
        self.cache = PagedKVCache(BLOCKS, BLOCK_SIZE, NHEADS_K, HEADDIM, num_layers=LAYERS, dtype=stored, device=device)
        self.batch = batch_of(device, MOST_TOKENS, starts=True)
        self.decode = Decode(model, self.cache, device, dtype)
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
        tokens = [token for request, count in work for token in request.tokens[request.seen : request.seen + count]]
        positions = [request.seen + i for request, count in work for i in range(count)]
        names = [request.number for request, _ in work]
        if counts == [1] * len(work):
            following = self.decode(tokens, positions, self.cache.lists(names), slots)
        else:
            self.batch.update_(*self.cache.lists(names, counts), slots=slots)
            given = (torch.tensor(each, device=self.device) for each in (tokens, positions))
            following = self.model(*given, Paged(self.cache, self.batch, self.dtype)).argmax(-1).tolist()
        end = 0
        for request, count in work:
            end += count
            request.seen += count
            if request.seen == len(request.tokens):
                request.tokens.append(following[end - 1])
                request.generated.append(following[end - 1])


def one_by_one(model: Model, prompt: list[int], wanted: int, device: str) -> list[int]:
    """The tokens that a prompt alone leads to, in float32."""
    attend = Alone(len(prompt) + wanted, device)
    tokens, seen = list(prompt), 0
    while len(tokens) < len(prompt) + wanted:
        new, places = (torch.tensor(each, device=device) for each in (tokens[seen:], range(seen, len(tokens))))
        seen = len(tokens)
        tokens.append(int(model(new, places, attend)[-1].argmax()))
    return tokens[len(prompt) :]


def logits_of(model: Model, tokens: list[int], prompt: int, device: str, stored: torch.dtype = torch.float32) -> Tensor:
    """Of each token after the prompt, the logits that it was chosen from, where the model alone saw all before it."""
    given = torch.tensor(tokens[:-1], device=device)
    return model(given, torch.arange(len(given), device=device), Alone(len(tokens), device, stored))[prompt - 1 :]


def behind(logits: Tensor, tokens: list[int]) -> Tensor:
    """How far the logit of each token is behind the best, in standard deviations of the logits."""
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)).squeeze(1)
    return (logits.amax(1) - chosen) / logits.std(1)


def compared(model: Model, done: list[Request], prompts: list[list[int]], device: str, exact: bool) -> str:
    """What is said of requests beside one-by-one generation. exact: float32, where every token must be the same. Raises
    SystemExit where a token is another."""
    same, near = 0, 0
    for request in done:
        prompt, served = prompts[request.number], request.generated[: request.wanted]
        alone = one_by_one(model, prompt, request.wanted, device)
        same += served == alone
        if served == alone:
            continue
        gaps = behind(logits_of(model, prompt + served, len(prompt), device), served)
        if exact or gaps.max() > NEAR:
            raise SystemExit(f"request {request.number}: served {served}, alone {alone}")
        near += int((gaps > 0).sum())
    said = f"{same} of them generated one by one: the same tokens"
    return said if same == len(done) else f"{said}; {len(done) - same} part at {near} tokens that are all but equal"


def agreement(model: Model, done: list[Request], prompts: list[list[int]], device: str, stored: torch.dtype) -> str:
    """What is said of requests that were served from a quantised cache: beside the model alone over one, of which every
    token must be the best or all but equal to it, and beside the model that stores float32, both where they saw the
    tokens that were served. Raises SystemExit where a token is another."""
    wrong, best, apart, size = [], [], [], []
    for request in done:
        prompt, served = prompts[request.number], request.generated[: request.wanted]
        exact, own = (logits_of(model, prompt + served, len(prompt), device, each) for each in (torch.float32, stored))
        if behind(own, served).max() > NEAR:
            wrong.append(request.number)
        best.append(exact.argmax(1) == own.argmax(1))
        apart.append((own - exact).square().mean(1))
        size.append(exact.var(1))
    if wrong:
        raise SystemExit(f"requests {wrong}: other tokens than those of the model alone over such a cache")
    same, error = torch.cat(best).float().mean(), (torch.cat(apart).mean() / torch.cat(size).mean()).sqrt()
    tokens = sum(map(len, best))
    return (
        f"{tokens:,} tokens: the best one as in float32 in {same:.1%}, the logits apart by {error:.1%} of their spread"
    )


def bytes_of_a_token(cache: PagedKVCache) -> int:
    """Its keys and values in all layers, and their scales."""
    held = [x for layer in range(LAYERS) for x in (cache.k[layer], cache.v[layer], *cache.scales(layer).values())]
    return sum(x.nbytes for x in held if isinstance(x, Tensor)) // (cache.num_blocks * cache.block_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="[%(default)s]")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of keys, values and attention")
    parser.add_argument("--kv", choices=KV, help="in what keys and values are stored [in --dtype]")
    parser.add_argument("--requests", type=int, default=24, help="how many come [%(default)s]")
    parser.add_argument("--check", type=int, default=24, help="how many are generated again, one by one [%(default)s]")
    arguments = parser.parse_args()
    device = arguments.device
    dtype = getattr(torch, arguments.dtype or ("float32" if device == "cpu" else "float16"))

    draw, model = random.Random(0), Model(device)
    prefix = [draw.randrange(VOCABULARY) for _ in range(PREFIX)]
    prompts = [
        prefix + [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 90))] for _ in range(arguments.requests)
    ]
    coming = deque(Request(i, list(prompt), draw.randint(4, 32)) for i, prompt in enumerate(prompts))
    done: list[Request] = []
    with torch.inference_mode():
        stored = KV.get(arguments.kv, dtype)
        server, started, computed, steps = Server(model, prefix, device, dtype, stored), time.perf_counter(), 0, 0
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
        told = " with decode as a CUDA graph" if server.decode.graph is not None else ""
        print(f"{rate:,.0f} tokens/s on {device}, keys and values in {arguments.kv or str(dtype)[6:]}{told}")
        some = sorted(done, key=lambda each: each.number)[: arguments.check]
        if arguments.kv is None:
            print(compared(model, some, prompts, device, exact=dtype == torch.float32))
            return
        size, halves = bytes_of_a_token(server.cache), 2 * LAYERS * NHEADS_K * HEADDIM * 2
        print(f"a token takes {size:,} bytes, {size / halves:.2f} of its {halves:,} in 16 bits")
        print(agreement(model, some, prompts, device, stored))


if __name__ == "__main__":
    main()
