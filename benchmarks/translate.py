"""Translating, greedy and with 4 beams: ours and transformers' MarianMTModel of the same sizes, in turn.

    python -m benchmarks.translate --shapes demo real --rounds 3 --json translate.json

Random weights that never end a sentence, so both do the same number of steps; where sentences end at different lengths,
ours lets them leave the batch and transformers' goes on with them. Encoder and decoder have embeddings of their own, as
large as ours. float32 on the CPU; one call translates the whole batch, encoder included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import Variant, in_turn, report, spread, table

EOS, PAD = 1, 2
NEVER = -1e4  # added to the score of eos


@dataclass(frozen=True)
class Work:
    """A model's sizes, and what it translates: `sentences` of `source` words into `target`, eos not counted."""

    n_words: int
    dim: int
    n_layers: int
    n_heads: int
    ffn_dim: int
    sentences: int
    source: int
    target: int


SHAPES = {
    "demo": Work(1_500, 256, 4, 4, 1024, sentences=32, source=24, target=30),
    "real": Work(64_699, 1024, 6, 8, 4096, sentences=8, source=24, target=12),
}


def sources(work: Work) -> torch.Tensor:
    tokens = torch.randint(14, work.n_words, (work.sentences, work.source + 2), generator=torch.Generator())
    tokens[:, [0, -1]] = EOS
    return tokens


def ours(shape: str, beams: int) -> Callable[[], int]:
    from xlm_train.model.seq2seq import Seq2Seq
    from xlm_train.model.transformer import ModelShape
    from xlm_train.model.translation import Beam, translate
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    work = SHAPES[shape]
    torch.manual_seed(0)
    model = Seq2Seq(
        ModelShape(
            n_words=work.n_words, dim=work.dim, n_layers=work.n_layers, n_heads=work.n_heads, ffn_dim=work.ffn_dim,
            max_positions=128, vocab_multiple=8,
        )
    )  # fmt: skip
    model.decoder.output_bias.data[EOS] = NEVER
    texts = sources(work).tolist()
    search = Beam(beams) if beams > 1 else None

    def call() -> int:
        return sum(len(text) - 2 for text in translate(model, texts, 0, 1, work.target + 2, search))

    return call


def marian(shape: str, beams: int) -> Callable[[], int]:
    from transformers import MarianConfig, MarianMTModel

    work = SHAPES[shape]
    torch.manual_seed(0)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=work.n_words, decoder_vocab_size=work.n_words, share_encoder_decoder_embeddings=False,
            d_model=work.dim, encoder_layers=work.n_layers, decoder_layers=work.n_layers,
            encoder_attention_heads=work.n_heads, decoder_attention_heads=work.n_heads, encoder_ffn_dim=work.ffn_dim,
            decoder_ffn_dim=work.ffn_dim, activation_function="gelu", max_position_embeddings=128,
            eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=EOS, forced_eos_token_id=None,
        )
    ).eval()  # fmt: skip
    model.final_logits_bias[0, EOS] = NEVER
    tokens = sources(work)

    def call() -> int:
        with torch.inference_mode():
            found = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), num_beams=beams, do_sample=False, length_penalty=1.0,
                max_new_tokens=work.target, early_stopping=False,
            )  # fmt: skip
        return found.numel() - len(found)

    return call


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    rows = []
    for shape in options.shapes:
        for beams in options.beams:
            at = {"shape": shape, "beams": beams}
            ways = [Variant("ours", "benchmarks.translate:ours", at)]
            ways += [Variant("transformers", "benchmarks.translate:marian", at, imports=("transformers",))]
            results = in_turn(ways, options.rounds, options.threads)
            words = SHAPES[shape].sentences * SHAPES[shape].target
            for name, measured in results.items():
                ratio, cpu = (results["transformers"].times_slower_than(measured, cpu) for cpu in (False, True))
                assert {*measured.returned} == {words}, f"{name} wrote {measured.returned} words, not {words}"
                speed = [f"{measured.median:.2f}", f"{words / measured.median:,.0f}", spread(ratio), spread(cpu)]
                rows.append([shape, beams, name, *speed])
                figures[f"{shape}, beam {beams}, {name}"] = {
                    "seconds": measured.seconds,
                    "times_as_fast": ratio,
                    "times_as_fast_in_cpu_seconds": cpu,
                }
    heads = ["shape", "beams", "", "s", "words/s", "times as fast as transformers", "in CPU seconds"]
    return report("Translating", table(heads, rows), figures, options.json)


if __name__ == "__main__":
    main()
