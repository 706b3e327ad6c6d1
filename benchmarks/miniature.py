"""The steps of the table in miniature (`make table2`): ours and a plain PyTorch loop of the same model, in turn.

    python -m benchmarks.miniature --rounds 20 --json miniature.json

128 wide, 3 layers, 4 heads, 4,000 words, no dropout, float32, one thread. mlm and clm: 2 slots of 16 windows of 32 tokens,
as experiment=table2_mlm and table2_clm; ae: 50 sentences of 18 to 22 tokens, encoder and decoder, as a denoising step
of experiment=table2_mini. The plain loop has torch's own layers, nn.TransformerEncoder and nn.TransformerDecoder, and the
two slots as one batch; its masked model predicts the hidden words alone, as ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.step import BETAS, CLIP_NORM, EPS, LR, chosen, masked, update
from benchmarks.turns import Variant, in_turn, report, spread, table
from xlm_train.model.seq2seq import Seq2Seq, pad, predictions
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.text.vocabulary import EOS, PAD

SHAPE = ModelShape(n_words=4_043, dim=128, n_layers=3, n_heads=4, ffn_dim=512, dropout=0.0, attention_dropout=0.0)
SLOTS, STREAMS, BPTT = 2, 16, 32
SENTENCES, LENGTHS = 50, range(18, 23)
OBJECTIVES = ("mlm", "clm", "ae")


def windows() -> Tensor:
    return torch.randint(14, SHAPE.n_words, (SLOTS * STREAMS, BPTT), generator=torch.Generator().manual_seed(0))


def sentences() -> list[list[int]]:
    words = windows().flatten().tolist()
    lengths = [LENGTHS[number % len(LENGTHS)] for number in range(SENTENCES)]
    return [[EOS, *words[number : number + length - 2], EOS] for number, length in enumerate(lengths)]


def ours(objective: str) -> Callable[[], float]:
    """The step of xlm-train without Lightning around it."""
    from xlm_train.data.noise import seed_noise
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    torch.manual_seed(0)
    model = Seq2Seq(SHAPE) if objective == "ae" else XLM(SHAPE)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    (target_BT, lengths_B), places = pad(sentences()), chosen(STREAMS, BPTT)
    predicted = predictions(lengths_B)
    slots = [target_BT] if objective == "ae" else windows().chunk(SLOTS)

    def loss_of(slot: Tensor) -> Tensor:
        if isinstance(model, Seq2Seq):
            return model.loss(model.encode(slot, 0, lengths_B), slot, 0, predicted)
        if objective == "clm":
            return model.next_token_loss(slot, 0)
        return model.masked_loss(masked(slot, places), 0, places, slot.flatten()[places])

    def step() -> float:
        total = 0.0
        for number, slot in enumerate(slots):
            seed_noise(0, 0, number)
            loss = loss_of(slot)
            (loss / len(slots)).backward()
            total += loss.item()
        update(parameters, optimizer, CLIP_NORM)
        return total

    return step


class PlainModel(nn.Module):
    """An encoder, or an encoder and a decoder, of torch's own layers with words, positions and languages added up."""

    def __init__(self, decoder: bool) -> None:
        super().__init__()
        D = SHAPE.dim
        sides = 2 if decoder else 1
        self.words = nn.ModuleList(nn.Embedding(SHAPE.n_words, D, padding_idx=PAD) for _ in range(sides))
        self.positions = nn.ModuleList(nn.Embedding(SHAPE.max_positions, D) for _ in range(sides))
        self.languages = nn.ModuleList(nn.Embedding(SHAPE.n_langs, D) for _ in range(sides))
        self.norms = nn.ModuleList(nn.LayerNorm(D, eps=1e-12) for _ in range(sides))
        options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        layer = nn.TransformerEncoderLayer(D, SHAPE.n_heads, SHAPE.ffn_dim, **options)
        self.encoder = nn.TransformerEncoder(layer, SHAPE.n_layers)
        if decoder:
            layer = nn.TransformerDecoderLayer(D, SHAPE.n_heads, SHAPE.ffn_dim, **options)
            self.decoder = nn.TransformerDecoder(layer, SHAPE.n_layers)
        self.output = nn.Linear(D, SHAPE.n_words)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=D**-0.5)
        self.output.weight = self.words[-1].weight

    def embed(self, tokens: Tensor, side: int) -> Tensor:
        places, language = torch.arange(tokens.shape[1]), torch.zeros_like(tokens)
        summed = self.words[side](tokens) + self.positions[side](places) + self.languages[side](language)
        return self.norms[side](summed)  # type: ignore[no-any-return]


def plain(objective: str) -> Callable[[], float]:
    """A PyTorch training loop as a tutorial writes it."""
    torch.manual_seed(0)
    model = PlainModel(decoder=objective == "ae")
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=BETAS, eps=EPS)
    tokens, places, target = windows(), chosen(SLOTS * STREAMS, BPTT), pad(sentences())[0]

    def loss_of() -> Tensor:
        if objective == "mlm":
            states = model.encoder(model.embed(masked(tokens, places), 0))
            return F.cross_entropy(model.output(states.flatten(0, 1)[places]), tokens.flatten()[places])
        text = tokens if objective == "clm" else target
        inputs, words = text[:, :-1], text[:, 1:]
        causal = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        if objective == "clm":
            states = model.encoder(model.embed(inputs, 0), mask=causal, is_causal=True)
        else:
            padding = target == PAD
            memory = model.encoder(model.embed(target, 0), src_key_padding_mask=padding)
            states = model.decoder(
                model.embed(inputs, 1), memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=padding
            )
        return F.cross_entropy(model.output(states).flatten(0, 1), words.flatten(), ignore_index=PAD)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows, figures = [], {}
    for objective in OBJECTIVES:
        at = {"objective": objective}
        kinds = [Variant(name, f"benchmarks.miniature:{name}", at, warm_up=10) for name in ("ours", "plain")]
        found = in_turn(kinds, options.rounds, options.threads)
        ours_, plain_ = found["ours"], found["plain"]
        ratio, cpu_ratio = (plain_.times_slower_than(ours_, cpu) for cpu in (False, True))
        rows.append(
            [objective, f"{1000 * ours_.median:.0f}", f"{1000 * plain_.median:.0f}", spread(ratio), spread(cpu_ratio)]
        )
        figures[objective] = {
            "seconds": {"ours": ours_.seconds, "plain": plain_.seconds},
            "cpu_seconds": {"ours": ours_.cpu_seconds, "plain": plain_.cpu_seconds},
            "plain_by_ours": ratio,
            "plain_by_ours_in_cpu_seconds": cpu_ratio,
        }
    text = table(["", "ours, ms a step", "plain, ms a step", "plain takes", "in CPU seconds"], rows)
    return report("Training steps of the table in miniature", text, {"rounds": options.rounds, **figures}, options.json)


if __name__ == "__main__":
    main()
