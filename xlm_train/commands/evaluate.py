"""`xlm-eval`: perplexity and accuracy of a checkpoint on a corpus, or sentence by sentence on raw text."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from xlm_train.config.command import command
from xlm_train.config.schema import Count, at_least, one_of, out_problems, read_config
from xlm_train.evaluation.corpus import evaluate, score_text, table
from xlm_train.runtime.errors import ConfigError
from xlm_train.runtime.files import write_json


@dataclass
class DataPath:
    """Where the corpus is."""

    path: str | None


@dataclass
class EvalConfig:
    """configs/eval.yaml."""

    checkpoint: str
    data: DataPath
    split: Annotated[str, one_of("train", "valid", "test")]
    baselines: bool
    text: dict[str, str]
    bptt: int | None
    batch_tokens: Count
    out: str | None
    device: str
    threads: Annotated[int | None, at_least(1)]

    def __post_init__(self) -> None:
        from xlm_train.runtime.run_store import local_checkpoint

        self.checkpoint = str(local_checkpoint(self.checkpoint))

    def problems(self) -> list[str]:
        """List what is wrong with the values, before any file is opened."""
        problems = out_problems(self.out)
        if not Path(self.checkpoint).is_file():
            problems.append(f"checkpoint={self.checkpoint}: there is no such file")
        if (self.data.path is None) == (not self.text):
            problems.append("give data.path=FOLDER for a corpus, or text.LANGUAGE=FILE for raw text: one of them")
        if self.text and self.baselines:
            problems.append("baselines=true needs a corpus with a train split: give data.path instead of text")
        return problems


@command(
    "eval",
    "Perplexity and accuracy of a checkpoint, as the original computes them, on a binarised corpus or on raw text.",
    [
        "xlm-eval checkpoint=FILE data.path=CORPUS split=test",
        "xlm-eval checkpoint=FILE data.path=CORPUS split=valid baselines=true out=result.json",
        "xlm-eval checkpoint=FILE text.en=FILE.txt text.de=FILE.gz out=scores.json",
    ],
    read=functools.partial(read_config, EvalConfig),
)
def main(settings: EvalConfig) -> int:
    """Score, print and write. Returns the exit status."""
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
    if problems := out_problems(str(out)):
        raise ConfigError([f"{problem}; out=FILE says where else" for problem in problems])
    if corpus is not None:
        result = evaluate(trained, corpus, settings.split, settings.baselines, settings.batch_tokens, progress=True)
    else:
        result = score_text(trained, settings.text, out, settings.batch_tokens, progress=True)
    print(table(result), flush=True)
    write_json(out, result)
    files = ", ".join(map(str, [out, *result.get("files", {}).values()]))
    print(f"{result['tokens_per_second']:,.0f} tokens/s; written to {files}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main()
