"""`xlm-eval`: a checkpoint's perplexity and accuracy, or its translations' BLEU, on a corpus or on raw text."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from xlm_train.config.command import command
from xlm_train.config.evaluate import EvalConfig
from xlm_train.config.files import out_problems
from xlm_train.config.schema import read_config
from xlm_train.evaluation.corpus import default_out, evaluate, score_text, table
from xlm_train.runtime.console import show
from xlm_train.runtime.errors import ConfigError
from xlm_train.runtime.files import write_json


@command(
    "eval",
    "Perplexity and accuracy of a checkpoint, and BLEU of a translation model's, as the original computes them.",
    [
        "xlm-eval checkpoint=FILE data.path=CORPUS split=test    # of a translation model also beam=4",
        "xlm-eval checkpoint=FILE data.path=CORPUS split=valid baselines=true out=result.json",
        "xlm-eval checkpoint=FILE text.en=FILE.txt text.de=FILE.gz out=scores.json",
    ],
    read=functools.partial(read_config, EvalConfig),
)
def main(settings: EvalConfig) -> int:
    """Score, print and write. Returns the exit status.

    Raises:
        ConfigError: The scores cannot be written where they belong, or `beam` is given for a language model.
    """
    from xlm_train.data.corpus import Corpus
    from xlm_train.evaluation import translation
    from xlm_train.model.translator import Translator, open_either
    from xlm_train.runtime.device import use_cpu

    use_cpu(settings.threads)
    opened = open_either(settings.checkpoint, settings.device, settings.bptt)
    corpus = None if settings.data.path is None else Corpus(settings.data.path)
    out = default_out(opened, corpus, settings.split) if settings.out is None else Path(settings.out)
    if problems := out_problems(str(out)):
        raise ConfigError([f"{problem}; out=FILE says where else" for problem in problems])
    if isinstance(opened, Translator):
        if settings.baselines:
            raise ConfigError("baselines=true: are of language models; translations always stand beside theirs")
        text, search = corpus or settings.text, (settings.beam, settings.length_penalty, settings.batch_tokens)
        result = translation.evaluate(opened, text, settings.split, out, *search, progress=True)
    elif settings.beam > 1:
        raise ConfigError(f"beam={settings.beam}: {opened.path} is a language model: nothing is translated")
    elif corpus is not None:
        result = evaluate(opened, corpus, settings.split, settings.baselines, settings.batch_tokens, progress=True)
    else:
        result = score_text(opened, settings.text, out, settings.batch_tokens, progress=True)
    show(translation.table(result) if "directions" in result else table(result))
    write_json(out, result)
    files = ", ".join(map(str, [out, *result.get("files", {}).values()]))
    (speed,) = (key for key in result if key.endswith("_per_second"))
    print(f"{result[speed]:,.0f} {speed.removesuffix('_per_second')}/s; written to {files}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main()
