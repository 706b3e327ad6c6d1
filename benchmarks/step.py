"""The training step at the real shape: ours, the obvious loop, transformers, and what the machine's matrix products allow.

    python -m benchmarks.step --streams 4 8 --rounds 3 --json step.json

1024 wide, 6 layers, 8 heads, 64,699 words, windows of 256 tokens (255 predictions), dropout 0.1, float32. Each variant
lives in a process of its own and all take turns. The roof is the time of the float32 matrix products alone that a step
cannot do without, in the same turns: forward and both backward products of every linear layer and of the softmax layer,
and half of the attention's squares (its other half is masked). Where torch.mm is not the fastest way to them on this
processor (see xlm_train/model/ops/matmul.py), the roof is the faster way, and torch.mm's time is shown beside it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.turns import Variant, in_turn, report, spread, table
from xlm_train.model.ops.matmul import ONEDNN
from xlm_train.model.transformer import XLM, ModelShape

N_WORDS, N_LANGS, DIM, N_LAYERS, N_HEADS, FFN_DIM, BPTT, MAX_POSITIONS = 64_699, 2, 1024, 6, 8, 4096, 256, 512
SHAPE = ModelShape(n_words=N_WORDS, vocab_multiple=8)
DROPOUT = 0.1
CLIP_NORM = 5.0
LR, BETAS, EPS = 1e-4, (0.9, 0.98), 1e-8


def windows(streams: int) -> Tensor:
    return torch.randint(14, N_WORDS, (streams, BPTT), generator=torch.Generator().manual_seed(0))


def update(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    """What ends a step of xlm-train: clipping, the optimizer, gradients let go."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    factor = (clip_norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    optimizer.step()
    optimizer.zero_grad()


def ours(
    streams: int, allocator: bool = True, slots: int = 1, recompute: bool = False, compiled: bool = False
) -> Callable[[], float]:
    """The step of xlm-train without Lightning around it: its model, loss, noise, clipping and optimizer.

    compiled: the blocks through torch.compile, which xlm-train does not do (see NOTES.md). It cannot take oneDNN's
    product in, so all products are torch's there.
    """
    from xlm_train.data.noise import seed_noise
    from xlm_train.model.ops import matmul
    from xlm_train.runtime.device import disable_malloc_trim

    if allocator:
        disable_malloc_trim()
    torch.manual_seed(0)
    model = XLM(SHAPE, recompute=recompute)
    if compiled:
        matmul.ONEDNN = False
        for block in model.blocks:
            block.compile()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    tokens = windows(streams)
    count = 0

    def step() -> float:
        nonlocal count
        total = 0.0
        for number, slot in enumerate(tokens.chunk(slots)):
            seed_noise(0, count, number)
            loss = model.next_token_loss(slot, 0)
            (loss / slots if slots > 1 else loss).backward()
            total += loss.item()
        update(parameters, optimizer, CLIP_NORM)
        count += 1
        return total / slots

    return step


class PlainAttention(nn.Module):
    """Queries, keys and values apart; scores, mask, softmax, dropout, sum: as the papers write it.

    fused: PyTorch's scaled_dot_product_attention in the place of the last five.
    """

    def __init__(self, shape: ModelShape, fused: bool) -> None:
        super().__init__()
        self.n_heads, self.fused = shape.n_heads, fused
        self.q, self.k, self.v, self.out = (nn.Linear(shape.dim, shape.dim) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (layer(x).view(B, T, self.n_heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            context = F.scaled_dot_product_attention(
                q, k, v, dropout_p=DROPOUT if self.training else 0.0, is_causal=True
            )
        else:
            scores = (q / math.sqrt(D // self.n_heads)) @ k.transpose(2, 3)
            weights = F.dropout(scores.masked_fill(mask, -math.inf).softmax(dim=-1), DROPOUT, self.training)
            context = weights @ v
        return self.out(context.transpose(1, 2).reshape(B, T, D))


class PlainBlock(nn.Module):
    def __init__(self, shape: ModelShape, fused: bool) -> None:
        super().__init__()
        self.attention = PlainAttention(shape, fused)
        self.norm1 = nn.LayerNorm(shape.dim, eps=1e-12)
        self.ffn = nn.Sequential(nn.Linear(shape.dim, shape.ffn_dim), nn.GELU(), nn.Linear(shape.ffn_dim, shape.dim))
        self.norm2 = nn.LayerNorm(shape.dim, eps=1e-12)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self.ffn(x)))


class PlainModel(nn.Module):
    """The same model written the obvious way. fused: see PlainAttention."""

    def __init__(self, shape: ModelShape = SHAPE, fused: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.n_words, shape.dim, padding_idx=2)
        self.positions = nn.Embedding(shape.max_positions, shape.dim)
        self.langs = nn.Embedding(shape.n_langs, shape.dim)
        self.norm = nn.LayerNorm(shape.dim, eps=1e-12)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(PlainBlock(shape, fused) for _ in range(shape.n_layers))
        self.output = nn.Linear(shape.dim, shape.n_words)
        for embedding in (self.words, self.positions, self.langs):
            nn.init.normal_(embedding.weight, std=shape.dim**-0.5)
        self.output.weight = self.words.weight

    def forward(self, tokens: Tensor, langs: Tensor) -> Tensor:
        T = tokens.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool, device=tokens.device).triu(1)
        x = self.words(tokens) + self.positions(torch.arange(T, device=tokens.device)) + self.langs(langs)
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, mask)
        return self.output(x)  # type: ignore[no-any-return]


def plain(streams: int) -> Callable[[], float]:
    """A PyTorch training loop as a tutorial writes it."""
    torch.manual_seed(0)
    model = PlainModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=BETAS, eps=EPS)
    tokens = windows(streams)
    langs = torch.zeros(streams, BPTT - 1, dtype=torch.int64)

    def step() -> float:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1], langs)
        loss = F.cross_entropy(logits.reshape(-1, N_WORDS), tokens[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def transformers(streams: int) -> Callable[[], float]:
    """transformers' XLM, causal, of the same shape, with AdamW; its loss is taken over the same predictions."""
    from transformers import XLMConfig, XLMWithLMHeadModel

    torch.manual_seed(0)
    config = XLMConfig(
        vocab_size=N_WORDS, emb_dim=DIM, n_layers=N_LAYERS, n_heads=N_HEADS, causal=True, n_langs=N_LANGS,
        use_lang_emb=True, max_position_embeddings=MAX_POSITIONS, dropout=DROPOUT, attention_dropout=DROPOUT,
    )  # fmt: skip
    model = XLMWithLMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)
    tokens = windows(streams)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    langs = torch.zeros_like(inputs)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(inputs, langs=langs, labels=targets).loss  # XLM's labels are not shifted inside
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def roof(streams: int, torch_mm: bool = False) -> Callable[[], None]:
    """The matrix products of a step and nothing else, by the faster library here, or by torch.mm."""
    from xlm_train.model.ops import matmul
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    if torch_mm:
        matmul.ONEDNN = False
    N, T, E = streams * (BPTT - 1), BPTT - 1, DIM // N_HEADS
    squares = streams * N_HEADS // 2  # the causal half
    layer = [(DIM, 3 * DIM), (DIM, DIM), (DIM, FFN_DIM), (FFN_DIM, DIM)]
    linears = [(*shape, N_LAYERS) for shape in layer] + [(DIM, SHAPE.n_rows, 1)]
    matrices = [
        (torch.randn(N, fan_in), torch.randn(fan_out, fan_in), torch.randn(N, fan_out), repeat)
        for fan_in, fan_out, repeat in linears
    ]
    heads, weights = torch.randn(squares, T, E), torch.randn(squares, T, T)
    to_heads, to_weights = torch.empty_like(heads), torch.empty_like(weights)

    def products() -> None:
        for x, w, dy, repeat in matrices:
            for _ in range(repeat):
                matmul.product(x, w.t())
                matmul.product(dy, w)
                matmul.product(dy.t(), x)
        for _ in range(2 * N_LAYERS):  # scores, and the gradient of the weights
            torch.bmm(heads, heads.transpose(1, 2), out=to_weights)
        for _ in range(4 * N_LAYERS):  # contexts, and the gradients of values, queries and keys
            torch.bmm(weights, heads, out=to_heads)

    return products


def flops(streams: int) -> float:
    """Floating-point operations of the roof's products."""
    N, T = streams * (BPTT - 1), BPTT - 1
    linears = N_LAYERS * DIM * (4 * DIM + 2 * FFN_DIM) + DIM * SHAPE.n_rows
    return 6.0 * N * linears + 6.0 * N_LAYERS * streams * T * T * DIM


def measure(streams: int, rounds: int, threads: int = 2) -> dict[str, Any]:
    """All variants at one batch size."""
    library = "transformers.models.xlm.modeling_xlm"
    at = {"streams": streams}
    variants = [
        # in the second step the optimizer's state still moves what was laid out before
        Variant("ours", "benchmarks.step:ours", at, warm_up=3),
        Variant("plain", "benchmarks.step:plain", at),
        Variant("transformers", "benchmarks.step:transformers", at, imports=(library,)),
        Variant("roof", "benchmarks.step:roof", at),
    ]
    if ONEDNN:
        variants.append(Variant("torch.mm's roof", "benchmarks.step:roof", {**at, "torch_mm": True}))
    results = in_turn(variants, rounds, threads)
    tokens = streams * BPTT
    mine = results["ours"]
    share = results["roof"].times_slower_than(mine)
    return {
        "streams": streams,
        "tokens_per_step": tokens,
        "rounds": rounds,
        "variants": {
            name: {
                "seconds": measured.seconds,
                "median_seconds": measured.median,
                "cpu_seconds": measured.cpu_seconds,
                "tokens_per_second": tokens / measured.median,
                "page_faults": measured.faults,
                "peak_memory_gb": measured.peak / 1e9,
                "loss": measured.returned[-1],
            }
            for name, measured in results.items()
        },
        "ours_faster_than": {name: results[name].times_slower_than(mine) for name in ("plain", "transformers")},
        "share_of_roof": share,
        "roof_gflops_per_second": flops(streams) / results["roof"].median / 1e9,
        "memory_of_plain": mine.peak / results["plain"].peak,
    }


def show(result: dict[str, Any]) -> str:
    rows = []
    for name, figures in result["variants"].items():
        ratio = result["ours_faster_than"].get(name)
        rows.append(
            [
                name,
                f"{figures['median_seconds']:.2f}",
                f"{figures['tokens_per_second']:.0f}",
                spread(ratio) if ratio else "",
                f"{figures['peak_memory_gb']:.2f}",
                f"{sum(figures['page_faults']) / len(figures['page_faults']):,.0f}",
            ]
        )
    share = result["share_of_roof"]
    return (
        f"{result['streams']} streams\n"
        + table(["", "s a step", "tokens/s", "ours is faster", "peak memory, GB", "page faults a step"], rows)
        + f"\nours reaches {100 * share[0]:.0f} % of the roof ({100 * share[1]:.0f}-{100 * share[2]:.0f}),"
        + f" which is {result['roof_gflops_per_second']:.0f} GFLOP/s;"
        + f" its memory is {100 * result['memory_of_plain']:.0f} % of the plain loop's"
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = [measure(streams, options.rounds, options.threads) for streams in options.streams]
    text = "\n\n".join(show(result) for result in found)
    return report(
        "Training step, real shape, float32", text, {"threads": options.threads, "sizes": found}, options.json
    )


if __name__ == "__main__":
    main()
