"""`xlm-generate`: continue a text with a trained model."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from xlm_train.config.command import command
from xlm_train.config.files import checkpoint_problems, out_problems, overwriting_problems
from xlm_train.config.schema import Count, Device, Threads, between, free_text, read_config
from xlm_train.model.decoding import Sampling
from xlm_train.runtime.console import counted, show
from xlm_train.runtime.errors import EXIT_INTERRUPTED
from xlm_train.runtime.processes import StopFlag

if TYPE_CHECKING:
    from xlm_train.model.continuation import Continuation

ANSWER = b"\nstopping after this word, with all texts so far; Ctrl-C again aborts at once\n"


@dataclass
class GenerateConfig:
    """configs/generate.yaml."""

    checkpoint: str
    lang: str
    prompt: Annotated[str | None, free_text]
    prompts_file: str | None
    max_tokens: Count
    num_samples: Annotated[int, between(1, 10**6)]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_at_eos: bool
    stop: str | list[str] | None
    logprobs: bool
    batch_texts: Annotated[int, between(1, 10**6)]
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

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def problems(self) -> list[str]:
        """List what is wrong with the values, as far as the beginnings of files tell."""
        from xlm_train.text.reader import file_problems

        problems = self.sampling.problems() + out_problems(self.out) + checkpoint_problems(self.checkpoint)
        if self.out is not None:
            inputs = {"prompts_file": self.prompts_file, "checkpoint": self.checkpoint}
            problems += overwriting_problems(self.out, [Path(self.out)], inputs)
        if self.prompts_file is not None:
            problems += [f"prompts_file={problem}" for problem in file_problems(self.prompts_file)]
        if self.seed and not self.temperature:
            problems.append(f"seed={self.seed}: has no effect without draws: temperature=1")
        if "" in self.stops:
            problems.append("stop='': every text would end before it begins; give a letter at least, or stop=null")
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
        "xlm-generate checkpoint=FILE lang=en prompt='The king' stop=. logprobs=true",
        "xlm-generate checkpoint=FILE lang=en prompts_file=prompts.txt out=texts.jsonl",
        "echo 'The king' | xlm-generate checkpoint=runs/first lang=en prompts_file=-",
    ],
    read=functools.partial(read_config, GenerateConfig),
    texts=("prompt",),
)
def main(settings: GenerateConfig) -> int:
    """Continue each prompt, print as words come, and write. Returns the exit status."""
    import torch

    from xlm_train.model.continuation import continue_by_words, write_continuations
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
    start, printer, flag = time.perf_counter(), Printer(settings.logprobs), StopFlag(ANSWER)
    texts: list[Continuation] = []
    with flag.installed():
        for texts in continue_by_words(
            trained, prompts, settings.lang, settings.max_tokens, settings.sampling, settings.num_samples,
            settings.stop_at_eos, settings.batch_texts, settings.stops,
        ):  # fmt: skip
            if stopped := flag.is_set:  # asked once: it may be set at any moment
                for text in texts:
                    text.end()
            is_read = printer.show(texts)
            if stopped or (not is_read and settings.out is None):
                break
    seconds = time.perf_counter() - start
    tokens = sum(len(text.tokens) for text in texts)
    print(
        f"{counted(len(texts), 'text')}, {tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s",
        file=sys.stderr,
    )
    if settings.out is not None:
        write_continuations(settings.out, texts, settings.logprobs)
        print(f"written to {settings.out}", file=sys.stderr)
    return EXIT_INTERRUPTED if flag.is_set else 0


class Printer:
    """Prints texts that grow, one after another: of the first that has not ended as much as is final.

    Args:
        logprobs: Behind each text, on standard error, the log-probabilities of its new tokens.
    """

    def __init__(self, logprobs: bool) -> None:
        self.logprobs = logprobs
        self._done = 0  # texts that are printed whole
        self._letters = 0  # of the next one

    def show(self, texts: Sequence[Continuation]) -> bool:
        """Print what is new. Returns False where nobody reads it any more."""
        for text in texts[self._done :]:
            now = text.text
            if not show(now[self._letters :], end="\n" if text.ended else ""):
                return False
            self._letters = len(now)
            if not text.ended:
                break
            if self.logprobs:
                each = "  ".join(
                    f"{piece} {value:.2f}" for piece, value in zip(text.pieces, text.logprobs, strict=True)
                )
                print(f"log-probabilities: {each}; in all {sum(text.logprobs):.2f}", file=sys.stderr, flush=True)
            self._done, self._letters = self._done + 1, 0
        return True


if __name__ == "__main__":
    main()
