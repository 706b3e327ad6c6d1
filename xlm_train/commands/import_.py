"""`xlm-import`: a checkpoint or binarised text of the original, or a folder of transformers, in our formats."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.config.command import command
from xlm_train.runtime.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xlm_train.interop.original.checkpoint import Imported


@dataclass
class ImportConfig:
    file: str
    out: str
    codes: str | None
    vocab: str | None
    optimizer: bool
    bptt: int | None
    vocab_multiple: int
    split: str | None
    lang: str | None
    languages: list[str] | None

    def problems(self) -> list[str]:
        """What is wrong with the values, before anything is read."""
        problems = [
            f"{key}={file}: there is no such file"
            for key, file in (("codes", self.codes), ("vocab", self.vocab))
            if file is not None and not Path(file).is_file()
        ]
        if not Path(self.file).exists():
            problems.append(f"file={self.file}: there is no such file or folder")
        if self.bptt is not None and self.bptt < 2:
            problems.append(f"bptt={self.bptt}: a window needs at least 2 tokens to predict one")
        if self.vocab_multiple < 1:
            problems.append(f"vocab_multiple={self.vocab_multiple}: must be at least 1")
        return problems


@command(
    "import",
    "Bring a checkpoint of the original (.pth), a model folder of transformers, or binarised text of the original"
    " (.pth, or a folder of them) into this project's formats. Nothing in the files is executed.",
    [
        "xlm-import file=checkpoint.pth out=DIR codes=codes_ende",
        "xlm-import file=xlm-clm-ende-1024 out=DIR bptt=256   (a folder from the hub)",
        "xlm-import file=data/processed out=CORPUS codes=codes_ende   (train.en.pth, train.de.pth, ...)",
    ],
)
def main(config: DictConfig) -> int:
    from xlm_train.config.schema import read_config

    settings = read_config(ImportConfig, config)

    from xlm_train.interop.original import binarised
    from xlm_train.text.bpe import BpeCodes
    from xlm_train.text.vocabulary import read_text

    file, out = Path(settings.file), Path(settings.out)
    refuse_to_overwrite(out)
    codes = None if settings.codes is None else BpeCodes.from_file(settings.codes).to_text()
    if file.is_dir() and not (file / "config.json").is_file():
        files = binarised.files_in(file)
        if not files:
            raise ConfigError(
                f"file={file}: has neither a config.json (transformers) nor SPLIT.LANG.pth files (the original's text);"
                " for a checkpoint, name the .pth itself"
            )
        return import_corpus(files, settings, codes or "", out)
    if file.is_dir():
        from xlm_train.interop.transformers import folder as transformers_folder

        vocab = None if settings.vocab is None else read_text(settings.vocab)
        imported = transformers_folder.read(file, codes, vocab, settings.bptt, settings.vocab_multiple)
        return write_checkpoint(imported, out)
    key = binarised.key_of(file)
    if settings.split and settings.lang:
        key = (settings.split, settings.lang)
    if key is not None:
        return import_corpus({key: file}, settings, codes or "", out)

    from xlm_train.interop.original.checkpoint import import_checkpoint

    imported = import_checkpoint(file, codes or "", settings.optimizer, settings.vocab_multiple)
    if settings.bptt is not None:
        imported.content["config"]["data"] = {"bptt": settings.bptt}
    if codes is None:
        imported.warnings.append("a .pth holds no BPE codes: without codes=FILE this model cannot read raw text")
    return write_checkpoint(imported, out)


def write_checkpoint(imported: Imported, out: Path) -> int:
    """Write the checkpoint and its codes and vocabulary; say what it is."""
    from xlm_train.runtime import checkpoint_file
    from xlm_train.runtime.files import whole_folder

    content: dict[str, Any] = imported.content
    name = checkpoint_file.name_of(content["progress"]["step"])
    with whole_folder(out) as folder:
        checkpoint_file.save(folder / name, content)
        for part in ("codes", "vocab"):
            if content["text"][part]:
                (folder / part).write_bytes(content["text"][part].encode())
    for warning in imported.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    shape, progress = content["shape"], content["progress"]
    print(
        f"{out / name}: {shape['n_layers']} layers, width {shape['dim']}, {shape['n_words']:,} words, languages "
        f"{', '.join(content['text']['languages'])}; {progress['updates']:,} updates, "
        f"{'with' if content['optimizer'] else 'without'} optimizer state"
    )
    return 0


def import_corpus(files: dict[tuple[str, str], Path], settings: ImportConfig, codes: str, out: Path) -> int:
    """Write a corpus folder from the original's binarised files; say what is in it."""
    from xlm_train.interop.original.binarised import write_corpus
    from xlm_train.runtime.files import whole_folder

    languages = settings.languages or sorted({language for _, language in files})
    if missing := {language for _, language in files} - {*languages}:
        raise ConfigError(f"languages={languages}: lacks {', '.join(sorted(missing))}, which there are files of")
    with whole_folder(out) as folder:
        manifest = write_corpus(folder, files, languages, codes)
    if not codes:
        print("warning: without codes=FILE nothing but this text can be prepared for models of it", file=sys.stderr)
    for split, per_language in manifest["splits"].items():
        for language, counts in per_language.items():
            print(f"{out}: {split}.{language}: {counts['sentences']:,} sentences, {counts['tokens']:,} tokens")
    return 0


def refuse_to_overwrite(out: Path) -> None:
    """Raise ConfigError unless `out` is free or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"out={out}: is there already; give another folder")


if __name__ == "__main__":
    main()
