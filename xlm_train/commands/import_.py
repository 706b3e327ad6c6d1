"""`xlm-import`: a checkpoint or binarised text of the original, or a folder of transformers, in our formats."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from xlm_train.config.command import command
from xlm_train.config.schema import read_config
from xlm_train.interop.settings import ImportConfig
from xlm_train.runtime.console import show
from xlm_train.runtime.errors import ConfigError


@command(
    "import",
    "Bring a checkpoint of the original (.pth), a model folder of transformers, or binarised text of the original"
    " (.pth, or a folder of them) into this project's formats. Nothing in the files is executed.",
    [
        "xlm-import file=checkpoint.pth out=DIR codes=codes_ende",
        "xlm-import file=xlm-clm-ende-1024 out=DIR bptt=256   (a folder from the hub)",
        "xlm-import file=data/processed out=CORPUS codes=codes_ende   (train.en.pth, train.de-en.de.pth, ...)",
    ],
    read=functools.partial(read_config, ImportConfig),
)
def main(settings: ImportConfig) -> int:
    """Import a checkpoint or a corpus and print what there is now. Returns the exit status.

    Raises:
        ConfigError: `out` is there already, or `file` is a folder of no kind that is known here.
    """
    from xlm_train.interop.import_ import import_corpus, refuse_existing, write_checkpoint
    from xlm_train.interop.original import binarised
    from xlm_train.interop.original.checkpoint import import_checkpoint
    from xlm_train.interop.transformers import folder as transformers_folder
    from xlm_train.text.bpe import BpeCodes
    from xlm_train.text.vocabulary import read_text

    file, out = Path(settings.file), Path(settings.out)
    refuse_existing(out)
    codes = None if settings.codes is None else BpeCodes.from_file(settings.codes).to_text()
    is_transformers = (file / "config.json").is_file()
    files = binarised.files_in(file) if file.is_dir() and not is_transformers else {}
    if file.is_dir() and not is_transformers and not files:
        raise ConfigError(
            f"file={file}: has neither a config.json (transformers) nor SPLIT.LANG.pth or SPLIT.PAIR.LANG.pth files (the original's text);"
            " for a checkpoint, name the .pth itself"
        )
    if file.is_file():
        key = (settings.split, settings.lang) if settings.split and settings.lang else binarised.key_of(file)
        files = {} if key is None else {key: file}
    if files:
        names = () if file.is_file() else ("split", "lang")
        problems = settings.unused("binarised text", "bptt", "evaluation", "vocab", *names)
    elif is_transformers:
        problems = settings.unused("a folder of transformers", "split", "lang", "languages")
    else:
        problems = settings.unused("a checkpoint", "vocab", "split", "lang", "languages")
    if problems:
        raise ConfigError(problems)
    if files:
        lines = import_corpus(files, settings.languages, codes or "", out)
        warnings = [] if codes else ["without codes=FILE nothing but this text can be prepared for models of it"]
    else:
        if is_transformers:
            vocab = None if settings.vocab is None else read_text(settings.vocab)
            imported = transformers_folder.read(
                file, codes, vocab, settings.bptt, settings.vocab_multiple, settings.evaluation
            )
        else:
            imported = import_checkpoint(file, codes or "", settings.optimizer, settings.vocab_multiple)
            if settings.bptt is not None:
                imported.content["config"]["data"] = {"bptt": settings.bptt}
            if settings.evaluation is not None and imported.content["evaluation"] != "translation":
                imported.content["evaluation"] = settings.evaluation
            if codes is None:
                imported.warnings.append(
                    "a .pth holds no BPE codes: without codes=FILE this model cannot read raw text"
                )
        lines, warnings = [write_checkpoint(imported, out)], imported.warnings
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    show("\n".join(lines))
    return 0


if __name__ == "__main__":
    main()
