"""`xlm-export`: a checkpoint as a folder for transformers, or a checkpoint or corpus in the original's files."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from xlm_train.config.command import command
from xlm_train.config.schema import read_config
from xlm_train.interop.settings import ExportConfig
from xlm_train.runtime.console import show


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
