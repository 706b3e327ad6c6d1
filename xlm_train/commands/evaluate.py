"""`xlm-eval`: perplexity and accuracy of a checkpoint on a corpus, or sentence by sentence on raw text."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.config.command import command
from xlm_train.config.schema import out_problems, read_config
from xlm_train.runtime.files import write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

from xlm_train.evaluation.corpus import evaluate, score_text

SPLITS = ("train", "valid", "test")

BASELINES = ("unigram_perplexity", "bigram_perplexity")


@dataclass
class DataPath:
    path: str | None


@dataclass
class EvalConfig:
    checkpoint: str
    data: DataPath
    split: str
    baselines: bool
    text: dict[str, str]
    bptt: int | None
    batch_tokens: int
    out: str | None
    device: str
    threads: int | None

    def problems(self) -> list[str]:
        """What is wrong with the values, before any file is opened."""
        problems = out_problems(self.out)
        if not Path(self.checkpoint).is_file():
            problems.append(f"checkpoint={self.checkpoint}: there is no such file")
        if (self.data.path is None) == (not self.text):
            problems.append("give data.path=FOLDER for a corpus, or text.LANGUAGE=FILE for raw text: one of them")
        if self.split not in SPLITS:
            problems.append(f"split={self.split}: must be one of {', '.join(SPLITS)}")
        if self.text and self.baselines:
            problems.append("baselines=true needs a corpus with a train split: give data.path instead of text")
        for key in ("batch_tokens", "threads"):
            if (value := getattr(self, key)) is not None and value < 1:
                problems.append(f"{key}={value}: must be at least 1")
        return problems


@command(
    "eval",
    "Perplexity and accuracy of a checkpoint, as the original computes them, on a binarised corpus or on raw text.",
    [
        "xlm-eval checkpoint=FILE data.path=CORPUS split=test",
        "xlm-eval checkpoint=FILE data.path=CORPUS split=valid baselines=true out=result.json",
        "xlm-eval checkpoint=FILE text.en=FILE.txt text.de=FILE.gz out=scores.json",
    ],
)
def main(config: DictConfig) -> int:
    settings = read_config(EvalConfig, config)

    import torch

    from xlm_train.data.corpus import Corpus
    from xlm_train.model.pretrained import open_checkpoint
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    trained = open_checkpoint(settings.checkpoint, settings.device, settings.bptt)
    name = settings.split if settings.data.path is not None else "text"
    corpus = None if settings.data.path is None else Corpus(settings.data.path)
    if corpus is not None and corpus.lineage != trained.lineage.get("corpus"):
        name = f"{corpus.path.resolve().name}.{name}"  # beside the scores on its own corpus, not over them
    out = trained.path.with_suffix(f".{name}.json") if settings.out is None else Path(settings.out)
    progress = sys.stderr.isatty()
    if corpus is not None:
        result = evaluate(trained, corpus, settings.split, settings.baselines, settings.batch_tokens, progress)
    else:
        result = score_text(trained, settings.text, out, settings.batch_tokens, progress)
    write_json(out, result)
    print(table(result))
    files = ", ".join(map(str, [out, *result.get("files", {}).values()]))
    print(f"{result['tokens_per_second']:,.0f} tokens/s; written to {files}", file=sys.stderr)
    return 0


def table(result: Mapping[str, Any]) -> str:
    """The result for the terminal."""
    heads = ["", "perplexity", "accuracy %", "per word", "bits/char", "predicted", "unknown %", "unigram", "bigram"]
    rows = [
        [
            lang,
            *_cells(m),
            f"{m['predicted_tokens']:,}",
            f"{100 * m['unknown'] / m['tokens']:.3f}",
            *(f"{m[key]:,.2f}" for key in BASELINES if key in m),
        ]
        for lang, m in result["languages"].items()
    ]
    grid = [heads[: len(rows[0])], *rows, ["mean", *_cells(result["mean"])]]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*grid, fillvalue="")]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in grid)


def _cells(m: Mapping[str, Any]) -> list[str]:
    return [
        f"{m['perplexity']:,.2f}",
        f"{m['accuracy']:.2f}",
        f"{m['perplexity_per_word']:,.2f}",
        "not known" if m["bits_per_character"] is None else f"{m['bits_per_character']:.3f}",
    ]


if __name__ == "__main__":
    main()
