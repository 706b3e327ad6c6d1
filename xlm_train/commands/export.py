"""`xlm-export`: a checkpoint as a folder for transformers, or a checkpoint or corpus in the original's files."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from xlm_train.config.command import command
from xlm_train.config.files import checkpoint_problems
from xlm_train.config.schema import one_of, read_config
from xlm_train.interop.facts import CardFields
from xlm_train.runtime.console import show


@dataclass
class DataPath:
    """Where the corpus is."""

    path: str | None


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


@command(
    "export",
    "Write a checkpoint as a folder that transformers loads (format=hf), or a checkpoint or a corpus as the original's"
    " .pth files (format=xlm).",
    [
        "xlm-export checkpoint=FILE out=DIR",
        "xlm-export checkpoint=FILE out=DIR sample.en=TEXT sample.de=TEXT card.license=mit card.authors='Ann Example'",
        "xlm-export checkpoint=FILE out=DIR push_to_hub=OWNER/NAME dry_run=true",
        "xlm-export checkpoint=FILE out=DIR format=xlm",
        "xlm-export data.path=CORPUS out=DIR format=xlm",
    ],
    read=functools.partial(read_config, ExportConfig),
    texts=[f"card.{name}" for name in ("name", "license", "authors", "contact", "region")],
)
def main(settings: ExportConfig) -> int:
    """Export, upload where `out` is a URL, and print what there is now. Returns the exit status."""
    from xlm_train.interop.export import summary
    from xlm_train.interop.hub import listing, push
    from xlm_train.interop.transformers.folder import RECORD
    from xlm_train.runtime.storage import uploaded

    with uploaded(settings.out, last=RECORD) as out:
        record = export(settings, out)
    for warning in record["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    show(summary(settings.out, record))
    if settings.push_to_hub is not None and settings.dry_run:
        show(listing(out, settings.push_to_hub))
    elif settings.push_to_hub is not None:
        show(f"sent: {push(out, settings.push_to_hub)}")
    return 0


def export(settings: ExportConfig, out: Path) -> dict[str, Any]:
    """Write the folder. Returns its record."""
    from xlm_train.data.corpus import Corpus
    from xlm_train.interop.export import export_corpus, export_original, export_transformers, refuse_to_overwrite
    from xlm_train.runtime import checkpoint_file
    from xlm_train.text.bpe import BpeCodes

    refuse_to_overwrite(out)
    if settings.checkpoint is None:
        return export_corpus(Corpus(str(settings.data.path)), out)
    content = checkpoint_file.load(settings.checkpoint)
    if settings.codes is not None:
        content["text"]["codes"] = BpeCodes.from_file(settings.codes).to_text()
    if settings.format == "xlm":
        return export_original(content, out, settings.optimizer)
    return export_transformers(
        content, out,
        checkpoint=Path(settings.checkpoint),
        evaluation=None if settings.evaluation is None else Path(settings.evaluation),
        fields=settings.card,
        sample=settings.sample,
        verify=settings.verify,
        lang=settings.lang,
    )  # fmt: skip


if __name__ == "__main__":
    main()
