"""`xlm-translate`: translate raw text with a trained model, line by line."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Iterator

from xlm_train.config.command import command
from xlm_train.config.schema import read_config
from xlm_train.config.translate import TranslateConfig
from xlm_train.runtime.console import Progress, show
from xlm_train.runtime.files import ResumableLines, sha256_of


def lines_of(settings: TranslateConfig) -> Iterator[bytes]:
    """Lines of the input without their ends, as they stand; only a newline ends one."""
    from xlm_train.text.reader import raw_lines

    if settings.text is not None:
        return iter(settings.text.encode().split(b"\n"))
    if settings.file is not None:
        return raw_lines(settings.file)
    return (line.removesuffix(b"\n") for line in sys.stdin.buffer)


@command(
    "translate",
    "Translate raw text, line by line: detokenised text, as many lines, in their order.",
    [
        "xlm-translate checkpoint=FILE src=en tgt=de text='The king was dead.'",
        "xlm-translate checkpoint=FILE src=en tgt=de file=text.en out=text.de beam=4",
        "xlm-translate checkpoint=FILE src=de tgt=en <text.de >text.en",
    ],
    read=functools.partial(read_config, TranslateConfig),
    texts=("text",),
)
def main(settings: TranslateConfig) -> int:
    """Translate each line, print or write. Returns the exit status."""
    import torch

    from xlm_train.model.decoding import Sampling
    from xlm_train.model.translation import Beam
    from xlm_train.model.translator import open_translator
    from xlm_train.text.reader import as_text

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    translator = open_translator(settings.checkpoint, settings.device)
    translator.translate([], settings.src, settings.tgt)  # a language that it lacks is told before anything is written
    search: Sampling | Beam = Sampling(settings.temperature, seed=settings.seed)
    if settings.beam > 1:
        search = Beam(settings.beam, settings.length_penalty, settings.early_stopping)
    working: contextlib.AbstractContextManager[ResumableLines | None] = contextlib.nullcontext()
    if settings.out is not None:
        given = settings.text if settings.file is None else sha256_of(settings.file)
        # what comes through standard input may be another text each time
        key = repr((translator.sha256, given or time.time(), settings.src, settings.tgt, search, settings.batch_tokens))
        working = ResumableLines(settings.out, key)
    with working as out:
        is_known = out is not None and (settings.text is not None or settings.file is not None)
        size = sum(map(len, lines_of(settings))) if is_known else None  # in bytes, which the work follows
        progress = Progress("translate", size, {"lines": 0}, shown=out is not None)
        number = 0 if out is None else out.done
        progress.skip(sum(map(len, itertools.islice(lines_of(settings), number))), number)
        lines = as_text(itertools.islice(lines_of(settings), number, None), number + 1)
        while block := list(itertools.islice(lines, settings.block_lines)):
            found = translator.translate(block, settings.src, settings.tgt, search, settings.batch_tokens)
            if out is not None:
                out.write(found)
            elif not show("\n".join(found)):
                break  # nobody reads on
            progress.add(sum(len(line.encode()) for line in block), len(block))
        progress.end()
        if out is not None:
            out.finish()
    return 0


if __name__ == "__main__":
    main()
