"""`xlm-export`: a checkpoint as a folder for transformers, or a checkpoint or corpus in the original's files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.config.command import command

if TYPE_CHECKING:
    from omegaconf import DictConfig

FORMATS = ("hf", "xlm")


@dataclass
class DataPath:
    path: str | None


@dataclass
class CardConfig:
    name: str | None
    license: str | None
    authors: str | None
    contact: str | None
    region: str | None
    watts: float | None
    grams_co2_per_kwh: float | None


@dataclass
class ExportConfig:
    checkpoint: str | None
    data: DataPath
    out: str
    format: str
    codes: str | None
    optimizer: bool
    verify: bool
    sample: dict[str, str]
    evaluation: str | None
    card: CardConfig

    def problems(self) -> list[str]:
        """What is wrong with the values, before any file is opened."""
        problems = []
        if (self.checkpoint is None) == (self.data.path is None):
            problems.append("give checkpoint=FILE for a model, or data.path=FOLDER for a corpus: one of them")
        if self.format not in FORMATS:
            problems.append(f"format={self.format}: must be one of {', '.join(FORMATS)}")
        if self.data.path is not None and self.format == "hf":
            problems.append("data.path: a corpus can only be exported with format=xlm")
        files = {"checkpoint": self.checkpoint, "codes": self.codes, "evaluation": self.evaluation}
        files |= {f"sample.{code}": file for code, file in self.sample.items()}
        problems += [
            f"{key}={file}: there is no such file"
            for key, file in files.items()
            if file is not None and not Path(file).is_file()
        ]
        return problems


@command(
    "export",
    "Write a checkpoint as a folder that transformers loads (format=hf), or a checkpoint or a corpus as the original's"
    " .pth files (format=xlm).",
    [
        "xlm-export checkpoint=FILE out=DIR",
        "xlm-export checkpoint=FILE out=DIR sample.en=TEXT sample.de=TEXT card.license=mit card.authors='Ann Example'",
        "xlm-export checkpoint=FILE out=DIR format=xlm",
        "xlm-export data.path=CORPUS out=DIR format=xlm",
    ],
)
def main(config: DictConfig) -> int:
    from xlm_train.config.schema import read_config

    settings = read_config(ExportConfig, config)

    from xlm_train.data.corpus import Corpus
    from xlm_train.interop.export import export_corpus, export_original, export_transformers, refuse_to_overwrite
    from xlm_train.interop.facts import CardFields
    from xlm_train.runtime import checkpoint_file

    out = Path(settings.out)
    refuse_to_overwrite(out)
    if settings.checkpoint is None:
        record = export_corpus(Corpus(str(settings.data.path)), out)
    else:
        content = checkpoint_file.load(settings.checkpoint)
        if settings.codes is not None:
            from xlm_train.text.bpe import BpeCodes

            content["text"]["codes"] = BpeCodes.from_file(settings.codes).to_text()
        if settings.format == "xlm":
            record = export_original(content, out, settings.optimizer)
        else:
            record = export_transformers(
                content,
                out,
                checkpoint=Path(settings.checkpoint),
                evaluation=None if settings.evaluation is None else Path(settings.evaluation),
                fields=CardFields(**vars(settings.card)),
                sample=settings.sample,
                verify=settings.verify,
            )
    for warning in record["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(summary(out, record))
    return 0


def summary(out: Path, record: Mapping[str, Any]) -> str:
    """What the command prints at the end."""
    lines = [f"{out}: {', '.join(record['files'])}"]
    if record["kind"] == "hf":
        if differences := record.get("largest_score_difference"):
            found = ", ".join(f"{code} {value:.1e}" for code, value in differences.items())
            lines.append(f"loaded with transformers; largest difference of its scores from ours: {found}")
        else:
            lines.append("not tried out: transformers is not installed, or verify=false")
        for code, counts in record.get("stock_encode", {}).items():
            lines.append(
                f"encode() of transformers differs from our preparation in {counts['differ']} of {counts['lines']}"
                f" {code} lines"
            )
        if not record.get("stock_encode"):
            lines.append(
                "encode() of transformers was not compared with our preparation: no text (sample.LANGUAGE=FILE)"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
