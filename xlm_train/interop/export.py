"""`xlm-export`: a checkpoint as a folder for transformers, or a checkpoint or corpus in the original's files."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.interop.facts import Said
from xlm_train.runtime.errors import ConfigError, UserError

if TYPE_CHECKING:
    pass


def refuse_to_overwrite(out: Path) -> None:
    """Raise ConfigError unless `out` is free, empty, or an earlier export that nobody has changed since."""
    from xlm_train.interop.transformers.folder import RECORD, read_record
    from xlm_train.runtime.files import sha256_of

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ConfigError(f"out={out}: is a file; give a folder")
    record = read_record(out)
    if record is None:
        raise ConfigError(f"out={out}: is not empty and no earlier export; give another folder")
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if not path.is_dir()}
    changed = sorted(
        name for name, path in found.items() if name != RECORD and record["files"].get(name) != sha256_of(path)
    )
    if changed:
        raise ConfigError(
            f"out={out}: an earlier export, but {', '.join(changed)} was added or changed since: move it away, or give"
            " another folder"
        )


def export_transformers(
    content: dict[str, Any],
    out: Path,
    checkpoint: Path,
    evaluation: Path | None,
    said: Said,
    sample: Mapping[str, str],
    verify: bool,
) -> dict[str, Any]:
    """Write the folder for transformers, try it out where transformers is installed, and fill in its card.

    The folder appears only when all this has succeeded. Returns its record (export.json).
    """
    from xlm_train.interop.facts import gather
    from xlm_train.interop.model_card import model_card
    from xlm_train.interop.transformers import check
    from xlm_train.interop.transformers import folder as transformers_folder
    from xlm_train.runtime.files import atomic_write, whole_folder

    facts = gather(checkpoint, content, evaluation, said, n_parameters(content))
    unknown = sample.keys() - facts.languages.keys()
    if unknown:
        raise ConfigError(f"sample.{min(unknown)}: the checkpoint knows the languages {', '.join(facts.languages)}")
    samples = find_samples(sample, facts.manifest)
    with whole_folder(out) as folder:
        facts.warnings = transformers_folder.write(folder, content)
        record = new_record("hf", content, facts.warnings)
        write_record(folder, record)  # reading the folder's text needs it; written again below, with what was measured
        if verify and check.installed():
            record["largest_score_difference"] = check.compare_scores(folder, content)
            facts.stock = check.stock_differences(folder, samples)
            record["stock_encode"] = facts.stock
        with atomic_write(folder / "README.md") as file:
            file.write(model_card(facts).encode())
        write_record(folder, record)
    return record


def export_original(content: dict[str, Any], out: Path, with_optimizer: bool) -> dict[str, Any]:
    """Write checkpoint.pth as the original does, with codes and vocab beside it. Returns the folder's record."""
    from xlm_train.interop.original.checkpoint import export_checkpoint
    from xlm_train.runtime.files import atomic_write, whole_folder

    warnings = [] if content["text"]["codes"] else ["the checkpoint holds no BPE codes: none are written (codes=FILE)"]
    with whole_folder(out) as folder:
        export_checkpoint(folder / "checkpoint.pth", content, with_optimizer)
        for name in ("codes", "vocab"):
            if content["text"][name]:
                with atomic_write(folder / name) as file:
                    file.write(content["text"][name].encode())
        record = new_record("xlm", content, warnings)
        write_record(folder, record)
    return record


def export_corpus(corpus: Any, out: Path) -> dict[str, Any]:
    """Write a corpus as the original's SPLIT.LANG.pth files, with codes and vocab beside them. Returns the record.

    A language's split goes through memory as a whole, as it does in the original.
    """
    import numpy as np

    from xlm_train.interop.original.binarised import BinarisedText, write_binarised
    from xlm_train.runtime.files import atomic_write, whole_folder
    from xlm_train.text.vocabulary import Vocabulary

    vocabulary = Vocabulary.from_file(corpus.vocab_path)
    with whole_folder(out) as folder:
        for split, languages in corpus.manifest["splits"].items():
            for code, statistics in languages.items():
                if not corpus.has(split, code):
                    continue
                stream = corpus.stream(split, code)
                ids = np.concatenate([shard.tokens for shard in stream.shards])
                starts = np.concatenate(
                    [
                        np.load(corpus.path / entry["index"]) + shard.start
                        for entry, shard in zip(statistics["shards"], stream.shards, strict=True)
                    ]
                )
                write_binarised(folder / f"{split}.{code}.pth", BinarisedText(ids, starts, vocabulary, {}))
        for path in (corpus.codes_path, corpus.vocab_path):
            with atomic_write(folder / path.name) as file:
                file.write(path.read_bytes())
        record = {**new_record("xlm-corpus", None, []), "lineage": {"corpus": corpus.lineage, "parents": []}}
        write_record(folder, record)
    return record


def n_parameters(content: Mapping[str, Any]) -> int:
    """Parameters of the model as it is exported: tied weights once, no padding rows."""
    from xlm_train.interop.original.names import to_original
    from xlm_train.model.transformer import ModelShape

    theirs = to_original(content["model"], ModelShape(**content["shape"]), tied=False)
    return sum(tensor.numel() for tensor in theirs.values())


def find_samples(given: Mapping[str, str], manifest: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Raw text of each language to try encode() on: what the user gave, else the corpus's own inputs that are
    still there.
    """
    from xlm_train.interop.transformers.check import sample_lines

    samples = {code: sample_lines(file) for code, file in given.items()}
    for split in ("valid", "test", "train"):
        for code, statistics in (manifest or {"splits": {}})["splits"].get(split, {}).items():
            for entry in statistics.get("inputs", []):
                if code not in samples and Path(entry["path"]).is_file():
                    try:
                        samples[code] = sample_lines(entry["path"])
                    except UserError:
                        continue  # not a text file by itself: a pattern, or parquet
    return samples


def new_record(kind: str, content: Mapping[str, Any] | None, warnings: list[str]) -> dict[str, Any]:
    """export.json: what the folder was made from. Later exports replace a folder only where all files are as
    listed in it.
    """
    from datetime import datetime

    from xlm_train.interop.transformers.folder import RECORD_FORMAT

    record: dict[str, Any] = {
        "format": RECORD_FORMAT,
        "version": 1,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "warnings": warnings,
    }
    if content is not None:
        lineage, progress = content["lineage"], content["progress"]
        record["lineage"] = {**lineage, "parents": [*lineage["parents"], content["sha256"]]}
        record["progress"] = {key: progress[key] for key in ("step", "updates")}
        record["text"] = {key: content["text"][key] for key in ("lowercase", "remove_accents")}
    return record


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write export.json with the checksum of every other file of the folder."""
    from xlm_train.interop.transformers.folder import RECORD
    from xlm_train.runtime.files import sha256_of, write_json

    record["files"] = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
    write_json(folder / RECORD, record)


def summary(out: Path, record: Mapping[str, Any]) -> str:
    """Say what an export has written, in a few lines.

    Args:
        out: Its folder.
        record: Of the export, as in export.json.
    """
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
