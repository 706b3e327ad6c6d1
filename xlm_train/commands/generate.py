"""`xlm-generate`: continue a text with a trained model."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass
from typing import Annotated

from xlm_train.config.command import command
from xlm_train.config.schema import Count, Device, Threads, checkpoint_problems, free_text, out_problems, read_config
from xlm_train.model.decoding import Sampling, continue_texts, write_continuations
from xlm_train.runtime.console import counted, show


@dataclass
class GenerateConfig:
    """configs/generate.yaml."""

    checkpoint: str
    lang: str
    prompt: Annotated[str | None, free_text]
    prompts_file: str | None
    max_tokens: Count
    num_samples: Count
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_at_eos: bool
    batch_texts: Count
    out: str | None
    bptt: int | None
    device: Device
    threads: Threads

    def __post_init__(self) -> None:
        from xlm_train.runtime.run_store import local_checkpoint

        self.checkpoint = str(local_checkpoint(self.checkpoint))

    @property
    def sampling(self) -> Sampling:
        """How the next word is chosen."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)

    def problems(self) -> list[str]:
        """List what is wrong with the values, as far as the beginnings of files tell."""
        from xlm_train.text.reader import file_problems

        problems = self.sampling.problems() + out_problems(self.out) + checkpoint_problems(self.checkpoint)
        if self.prompts_file is not None:
            problems += [f"prompts_file={problem}" for problem in file_problems(self.prompts_file)]
        if (self.prompt is None) == (self.prompts_file is None):
            problems.append("give prompt='...' or prompts_file=FILE, one of them")
        if self.num_samples > 1 and self.temperature == 0:
            problems.append(
                f"num_samples={self.num_samples}: temperature=0 gives the same text each time; set temperature=1"
            )
        return problems


@command(
    "generate",
    "Continue a text with a trained model.",
    [
        "xlm-generate checkpoint=FILE lang=de prompt='Es war einmal'",
        "xlm-generate checkpoint=FILE lang=en prompt='The king' temperature=0.8 top_p=0.9 num_samples=3 seed=1",
        "xlm-generate checkpoint=FILE lang=en prompts_file=prompts.txt out=texts.jsonl",
        "echo 'The king' | xlm-generate checkpoint=runs/first lang=en prompts_file=-",
    ],
    read=functools.partial(read_config, GenerateConfig),
    texts=("prompt",),
)
def main(settings: GenerateConfig) -> int:
    """Continue each prompt, print and write. Returns the exit status."""
    import torch

    from xlm_train.model.pretrained import open_checkpoint
    from xlm_train.text.reader import read_lines

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.prompt is not None:
        prompts = [settings.prompt]
    else:
        prompts = [line for block in read_lines(str(settings.prompts_file)) for line in block]
    trained = open_checkpoint(settings.checkpoint, settings.device, settings.bptt)
    trained.require_causal("continuing a text")
    trained.text.language(settings.lang)
    for number, prompt in enumerate(prompts, start=1):
        if unknown := trained.text.encode(prompt.split("\n"), settings.lang).unknown:
            pieces = " ".join(sorted(unknown))
            print(f"warning: prompt {number}: not in the model's vocabulary, read as <unk>: {pieces}", file=sys.stderr)
    start, done = time.perf_counter(), []
    for continuation in continue_texts(
        trained, prompts, settings.lang, settings.max_tokens, settings.sampling, settings.num_samples,
        settings.stop_at_eos, settings.batch_texts,
    ):  # fmt: skip
        done.append(continuation)
        if not show(continuation.text) and settings.out is None:
            break  # nobody reads on
    seconds = time.perf_counter() - start
    tokens = sum(len(continuation.tokens) for continuation in done)
    print(
        f"{counted(len(done), 'text')}, {tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s",
        file=sys.stderr,
    )
    if settings.out is not None:
        write_continuations(settings.out, done)
        print(f"written to {settings.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main()
