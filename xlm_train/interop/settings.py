"""What configs/export.yaml and configs/import.yaml say, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from xlm_train.config.files import DataPath, checkpoint_problems
from xlm_train.config.schema import Count, one_of
from xlm_train.interop.facts import CardFields


@dataclass
class ExportConfig:
    """configs/export.yaml."""

    checkpoint: str | None
    data: DataPath
    out: str
    format: Annotated[str, one_of("hf", "xlm")]
    codes: str | None
    optimizer: bool
    verify: bool
    lang: str | None
    sample: dict[str, str]
    evaluation: str | None
    push_to_hub: str | None
    dry_run: bool
    card: CardFields

    def __post_init__(self) -> None:
        from xlm_train.runtime.run_store import local_checkpoint

        self.checkpoint = None if self.checkpoint is None else str(local_checkpoint(self.checkpoint))

    def problems(self) -> list[str]:
        """List what is wrong with the values, as far as the beginnings of files tell."""
        from xlm_train.text.reader import file_problems

        problems = []
        if (self.checkpoint is None) == (self.data.path is None):
            problems.append("give checkpoint=FILE for a model, or data.path=FOLDER for a corpus: one of them")
        if self.data.path is not None and self.format == "hf":
            problems.append("data.path: a corpus can only be exported with format=xlm")
        if self.format == "xlm":
            card = {f"card.{key}": value for key, value in vars(self.card).items()}
            given = {"lang": self.lang, "sample": self.sample or None, "evaluation": self.evaluation, **card}
            problems += [
                f"{key}={value}: of folders for transformers (format=hf)"
                for key, value in given.items()
                if value is not None
            ]
        if self.data.path is not None and self.codes is not None:
            problems.append(f"codes={self.codes}: a corpus has its own")
        problems += self._push_problems()
        if self.checkpoint is not None:
            problems += checkpoint_problems(self.checkpoint)
        files = {"codes": self.codes, "evaluation": self.evaluation}
        problems += [f"sample.{code}={why}" for code, file in self.sample.items() for why in file_problems(file)]
        return problems + [
            f"{key}={file}: there is no such file"
            for key, file in files.items()
            if file is not None and not Path(file).is_file()
        ]

    def _push_problems(self) -> list[str]:
        from xlm_train.interop.hub import problems_of
        from xlm_train.runtime.storage import is_url

        if self.push_to_hub is None:
            return ["dry_run=true lists what push_to_hub=OWNER/NAME would send: give that too"] if self.dry_run else []
        problems = problems_of(self.push_to_hub, self.dry_run)
        if self.format == "xlm":
            problems.append("push_to_hub: sends folders for transformers (format=hf)")
        if is_url(self.out):
            problems.append(f"push_to_hub: sends a folder of this machine, not out={self.out}")
        return problems


@dataclass
class ImportConfig:
    """configs/import.yaml."""

    file: str
    out: str
    codes: str | None
    vocab: str | None
    optimizer: bool
    bptt: int | None
    vocab_multiple: Count
    evaluation: Annotated[str | None, one_of("causal", "masked", null=True)]
    split: str | None
    lang: str | None
    languages: list[str] | None

    def __post_init__(self) -> None:
        from xlm_train.runtime.run_store import fetch_object
        from xlm_train.runtime.storage import is_url

        if is_url(self.file):
            self.file = str(fetch_object(self.file))

    def problems(self) -> list[str]:
        """List what is wrong with the values, before anything is read."""
        problems = [
            f"{key}={file}: there is no such file"
            for key, file in (("codes", self.codes), ("vocab", self.vocab))
            if file is not None and not Path(file).is_file()
        ]
        if not Path(self.file).exists():
            problems.append(f"file={self.file}: there is no such file or folder")
        if (self.split is None) != (self.lang is None):
            problems.append("split and lang: give both, of a binarised .pth whose name does not say them")
        if self.bptt is not None and self.bptt < 2:
            problems.append(f"bptt={self.bptt}: a window needs at least 2 tokens to predict one")
        return problems

    def unused(self, what: str, *keys: str) -> list[str]:
        """List which of some settings are given although they have no effect on what is imported."""
        given = {key: value for key in keys if (value := getattr(self, key)) is not None}
        return [f"{key}={value}: has no effect on {what}" for key, value in given.items()]
