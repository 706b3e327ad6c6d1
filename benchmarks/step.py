"""The training step at the real shape: ours, the obvious loop, transformers, and what the machine's matrix products allow.

    python -m benchmarks.step --streams 4 8 --rounds 3 --json step.json
    python -m benchmarks.step --objective mlm --streams 8 --only ours transformers roof

1024 wide, 6 layers, 8 heads, 64,699 words, windows of 256 tokens, dropout 0.1, float32; `ours, bfloat16` where the processor
multiplies bfloat16. clm: 255 predictions a window. mlm: 15 % of the tokens are predicted; transformers gets labels of
-100 for the others. Each variant lives in a process of its own and all take turns. A roof is the time of the matrix
products alone that a step cannot do without, in the same turns: forward and both backward products of every linear
layer and of the softmax layer, and the attention's squares (half of them under a causal mask). `roof` goes through the
library that xlm-train takes here (see xlm_train/model/ops/matmul.py); the other one's is shown beside it.
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

from benchmarks.turns import Measured, Variant, in_turn, report, spread, table
from xlm_train.model.ops import matmul
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.device import cpu_multiplies_bfloat16

N_WORDS, N_LANGS, DIM, N_LAYERS, N_HEADS, FFN_DIM, BPTT, MAX_POSITIONS = 64_699, 2, 1024, 6, 8, 4096, 256, 512
SHAPE = ModelShape(n_words=N_WORDS, vocab_multiple=8)
DROPOUT = 0.1
CLIP_NORM = 5.0
MASK, SHARE = 5, 0.15  # the masked word's id; share of tokens that masked language modelling predicts
LR, BETAS, EPS = 1e-4, (0.9, 0.98), 1e-8


def windows(streams: int) -> Tensor:
    return torch.randint(14, N_WORDS, (streams, BPTT), generator=torch.Generator().manual_seed(0))


def chosen(streams: int, bptt: int = BPTT) -> Tensor:
    """Places in the flattened windows whose words are to be predicted."""
    places = torch.randperm(streams * bptt, generator=torch.Generator().manual_seed(1))
    return places[: round(SHARE * len(places))].sort().values


def masked(tokens: Tensor, places: Tensor) -> Tensor:
    return tokens.flatten().index_fill(0, places, MASK).view(tokens.shape)


def update(parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    """What ends a step of xlm-train: clipping, the optimizer, gradients let go."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    factor = (clip_norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    optimizer.step()
    optimizer.zero_grad()


def ours(
    streams: int,
    objective: str = "clm",
    precision: str = "32-true",
    allocator: bool = True,
    slots: int = 1,
    recompute: bool = False,
    compiled: bool = False,
) -> Callable[[], float]:
    """The step of xlm-train without Lightning around it: its model, loss, noise, clipping and optimizer.

    compiled: the blocks through torch.compile, which xlm-train does not do (see NOTES.md). It cannot take oneDNN's
    product in, so all products are torch's there.
    """
    from pytorch_lightning.plugins.precision import Precision

    from xlm_train.data.noise import seed_noise
    from xlm_train.runtime.device import disable_malloc_trim
    from xlm_train.training.precision import Autocast

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
    arithmetic = Precision() if precision == "32-true" else Autocast(precision, "cpu")
    tokens, places = windows(streams), chosen(streams // slots)
    count = 0

    def loss_of(slot: Tensor) -> Tensor:
        if objective == "clm":
            return model.next_token_loss(slot, 0)
        return model.masked_loss(masked(slot, places), 0, places, slot.flatten()[places])

    def step() -> float:
        nonlocal count
        total = 0.0
        with arithmetic.forward_context():
            for number, slot in enumerate(tokens.chunk(slots)):
                seed_noise(0, count, number)
                loss = loss_of(slot)
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


def transformers(streams: int, objective: str = "clm") -> Callable[[], float]:
    """transformers' XLM of the same shape, with AdamW; its loss is taken over the same predictions."""
    from transformers import XLMConfig, XLMWithLMHeadModel

    torch.manual_seed(0)
    config = XLMConfig(
        vocab_size=N_WORDS, emb_dim=DIM, n_layers=N_LAYERS, n_heads=N_HEADS, causal=objective == "clm", n_langs=N_LANGS,
        use_lang_emb=True, max_position_embeddings=MAX_POSITIONS, dropout=DROPOUT, attention_dropout=DROPOUT,
    )  # fmt: skip
    model = XLMWithLMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0)
    tokens, places = windows(streams), chosen(streams)
    if objective == "clm":
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()  # XLM's labels are not shifted inside
    else:
        inputs, targets = masked(tokens, places), torch.full_like(tokens, -100)
        targets.view(-1)[places] = tokens.view(-1)[places]
    langs = torch.zeros_like(inputs)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(inputs, langs=langs, labels=targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def sizes(streams: int, objective: str) -> tuple[int, int, float]:
    """Positions of a window, predictions of a step, and the share of the attention's squares that is seen."""
    return (BPTT - 1, streams * (BPTT - 1), 0.5) if objective == "clm" else (BPTT, len(chosen(streams)), 1.0)


def roof(streams: int, objective: str = "clm", onednn: bool = False, bfloat16: bool = False) -> Callable[[], None]:
    """The matrix products of a step and nothing else, through one library."""
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    matmul.ONEDNN = onednn
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    (T, predictions, seen), E = sizes(streams, objective), DIM // N_HEADS
    layer = [(DIM, 3 * DIM), (DIM, DIM), (DIM, FFN_DIM), (FFN_DIM, DIM)]
    # of the last block only what is predicted from is needed behind the attention
    linears = [(streams * T, *layer[0], N_LAYERS), *((streams * T, *shape, N_LAYERS - 1) for shape in layer[1:])]
    linears += [(predictions, *shape, 1) for shape in (*layer[1:], (DIM, SHAPE.n_rows))]
    matrices = [
        (torch.randn(N, fan_in).to(dtype), torch.randn(fan_out, fan_in).to(dtype), torch.randn(N, fan_out).to(dtype), repeat)
        for N, fan_in, fan_out, repeat in linears
    ]  # fmt: skip
    squares = round(seen * streams * N_HEADS)
    heads, weights = torch.randn(squares, T, E).to(dtype), torch.randn(squares, T, T).to(dtype)
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


def flops(streams: int, objective: str) -> float:
    """Floating-point operations of the roof's products."""
    T, predictions, seen = sizes(streams, objective)
    rows = (N_LAYERS - 1) * streams * T + predictions  # behind the attention
    linears = N_LAYERS * 3 * DIM**2 * streams * T + rows * DIM * (DIM + 2 * FFN_DIM) + predictions * DIM * SHAPE.n_rows
    return 6.0 * linears + 12.0 * seen * N_LAYERS * streams * T * T * DIM


def variants_of(streams: int, objective: str) -> list[Variant]:
    at = {"streams": streams, "objective": objective}
    found = [
        # in the second step the optimizer's state still moves what was laid out before
        Variant("ours", "benchmarks.step:ours", at, warm_up=3),
        Variant(
            "transformers", "benchmarks.step:transformers", at, ("transformers.models.xlm.modeling_xlm",), warm_up=3
        ),
        Variant("roof", "benchmarks.step:roof", {**at, "onednn": matmul.ONEDNN}, warm_up=3),
    ]
    if objective == "clm":
        found.insert(1, Variant("plain", "benchmarks.step:plain", {"streams": streams}, warm_up=3))
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found.append(Variant("other roof", "benchmarks.step:roof", {**at, "onednn": not matmul.ONEDNN}, warm_up=3))
    if cpu_multiplies_bfloat16():
        found += [
            Variant("ours, bfloat16", "benchmarks.step:ours", {**at, "precision": "bf16-mixed"}, warm_up=3),
            Variant("roof, bfloat16", "benchmarks.step:roof", {**at, "bfloat16": True}, warm_up=3),
        ]
    return found


def measure(streams: int, objective: str, rounds: int, threads: int, only: Sequence[str] | None) -> dict[str, Any]:
    """All variants, or those named, at one batch size."""
    chosen_variants = [v for v in variants_of(streams, objective) if only is None or v.name in only]
    results = in_turn(chosen_variants, rounds, threads)
    tokens = streams * BPTT

    def times(slower: str, faster: str) -> tuple[float, float, float] | None:
        pair = slower in results and faster in results
        return results[slower].times_slower_than(results[faster]) if pair else None

    def figures(name: str, measured: Measured) -> dict[str, Any]:
        return {
            "seconds": measured.seconds,
            "median_seconds": measured.median,
            "cpu_seconds": measured.cpu_seconds,
            "tokens_per_second": tokens / measured.median,
            "page_faults": measured.faults,
            "peak_memory_gb": measured.peak / 1e9,
            "loss": measured.returned[-1],
            "ours_is_faster": times(name, "ours"),
            "gflops_per_second": flops(streams, objective) / measured.median / 1e9,
        }

    return {
        "objective": objective,
        "streams": streams,
        "tokens_per_step": tokens,
        "rounds": rounds,
        "library": "oneDNN" if matmul.ONEDNN else "MKL",
        "variants": {name: figures(name, measured) for name, measured in results.items()},
        "share_of_roof": times("roof", "ours"),
        "share_of_roof_bfloat16": times("roof, bfloat16", "ours, bfloat16"),
    }


def show(result: dict[str, Any]) -> str:
    rows = []
    for name, figures in result["variants"].items():
        ratio = figures["ours_is_faster"]
        rows.append(
            [
                name,
                f"{figures['median_seconds']:.2f}",
                f"{figures['tokens_per_second']:.0f}",
                spread(ratio) if ratio and name != "ours" else "",
                f"{figures['gflops_per_second']:.0f}",
                f"{figures['peak_memory_gb']:.2f}",
                f"{sum(figures['page_faults']) / len(figures['page_faults']):,.0f}",
            ]
        )
    heads = ["", "s a step", "tokens/s", "times as long as ours", "GFLOP/s", "peak memory, GB", "page faults a step"]
    lines = [
        f"{result['objective']}, {result['streams']} streams; the roof is {result['library']}'s",
        table(heads, rows),
    ]
    for key, name in (("share_of_roof", "ours"), ("share_of_roof_bfloat16", "ours, bfloat16,")):
        if share := result[key]:
            lines.append(
                f"{name} reaches {100 * share[0]:.0f} % of its roof ({100 * share[1]:.0f}-{100 * share[2]:.0f})"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", nargs="+", choices=("clm", "mlm"), default=["clm", "mlm"])
    parser.add_argument("--streams", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--only", nargs="+", help="variants by name; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = [
        measure(streams, objective, options.rounds, options.threads, options.only)
        for objective in options.objective
        for streams in options.streams
    ]
    text = "\n\n".join(show(result) for result in found)
    return report("Training step, real shape", text, {"threads": options.threads, "sizes": found}, options.json)


if __name__ == "__main__":
    main()
