"""`xlm-generate`: continue a text with a trained model."""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING

from xlm_train.config.command import command
from xlm_train.config.generate import GenerateConfig
from xlm_train.config.schema import read_config
from xlm_train.runtime.console import counted
from xlm_train.runtime.errors import EXIT_INTERRUPTED
from xlm_train.runtime.processes import StopFlag

if TYPE_CHECKING:
    from xlm_train.model.continuation import Continuation

ANSWER = b"\nstopping after this word, with all texts so far; Ctrl-C again aborts at once\n"


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

    from xlm_train.model.continuation import ContinuationPrinter, continue_by_words, write_continuations
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
    start, printer, flag = time.perf_counter(), ContinuationPrinter(settings.logprobs), StopFlag(ANSWER)
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


if __name__ == "__main__":
    main()
