"""Exports: a checkpoint as a folder for transformers, or a checkpoint or corpus in the original's files.

Each export is a folder that appears only when it is complete, with a record (export.json) of what it was made from and
the checksum of every file: a later export replaces a folder only if nothing in it was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from xlm_train.data.corpus import Corpus
from xlm_train.data.manifest import entries
from xlm_train.interop.facts import CardFields, gather
from xlm_train.interop.model_card import model_card
from xlm_train.interop.original.binarised import BinarisedText, write_binarised
from xlm_train.interop.original.checkpoint import export_checkpoint, fit_to_original
from xlm_train.interop.original.names import to_original
from xlm_train.interop.transformers import check
from xlm_train.interop.transformers import folder as transformers_folder
from xlm_train.interop.transformers.folder import RECORD, RECORD_FORMAT, read_record
from xlm_train.model.transformer import ModelShape
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.runtime.files import sha256_of, whole_folder, write_json
from xlm_train.text.vocabulary import Vocabulary


def refuse_to_overwrite(out: Path) -> None:
    """Check that `out` is free, empty, or an earlier export that nobody has changed since.

    Raises:
        ConfigError: If it is anything else.
    """
    if not out.name:
        raise ConfigError(f"out={out}: give the name of a folder to make")
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
    fields: CardFields,
    sample: Mapping[str, str],
    verify: bool,
    lang: str | None = None,
) -> dict[str, Any]:
    """Write the folder for transformers, try it out where transformers is installed, and fill in its card.

    Args:
        content: Of the checkpoint.
        out: The folder to make.
        checkpoint: The checkpoint's file; facts for the card are looked for around it.
        evaluation: A result of xlm-eval for the card; None takes those beside the checkpoint.
        fields: What the user says for the card.
        sample: Language -> file of raw text to compare encode() on.
        verify: Load the folder with transformers and compare.
        lang: Of a masked model, the language of pipelines; None takes English, else the first.

    Returns:
        The folder's record (export.json).

    Raises:
        UserError: If transformers' XLM cannot be this model or computes other scores, or a file is missing or wrong.
    """
    shape = ModelShape(**content["shape"])
    exported = to_original(content["model"], shape, tied=False)  # tied weights once, no padding rows
    facts = gather(checkpoint, content, evaluation, fields, sum(tensor.numel() for tensor in exported.values()))
    if unknown := sample.keys() - facts.languages.keys():
        raise ConfigError(f"sample.{min(unknown)}: the checkpoint knows the languages {', '.join(facts.languages)}")
    if lang is not None and content.get("evaluation") != "masked":
        raise ConfigError(f"lang={lang}: only folders of masked models have a language of their own, for pipelines")
    if lang is not None and lang not in facts.languages:
        raise ConfigError(f"lang={lang}: the checkpoint knows the languages {', '.join(facts.languages)}")
    facts.pipeline_language = lang
    samples = _find_samples(sample, facts.manifest)
    with whole_folder(out) as folder:
        facts.warnings = transformers_folder.write(folder, content, lang)
        record = _record("hf", content, facts.warnings)
        _write_record(folder, record)  # reading the folder's text needs it; written again with what was measured
        if verify and check.installed():
            record["largest_score_difference"] = check.compare_scores(folder, content)
            record["stock_encode"] = facts.stock = check.stock_differences(folder, samples)
        (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
        _write_record(folder, record)
    return record


def export_original(content: dict[str, Any], out: Path, with_optimizer: bool) -> dict[str, Any]:
    """Write checkpoint.pth as the original does, with codes and vocab beside it.

    Args:
        content: Of the checkpoint.
        out: The folder to make.
        with_optimizer: Write Adam's moments too, where the checkpoint has them.

    Returns:
        The folder's record (export.json).

    Raises:
        CheckpointError: The original cannot be this model.
    """
    content, warnings = fit_to_original(content)
    if not content["text"]["codes"]:
        warnings.append("the checkpoint holds no BPE codes: none are written (codes=FILE)")
    record = _record("xlm", content, warnings)
    with whole_folder(out) as folder:
        export_checkpoint(folder / "checkpoint.pth", content, with_optimizer)
        for name in ("codes", "vocab"):
            if content["text"][name]:
                (folder / name).write_text(content["text"][name], encoding="utf-8", newline="")
        _write_record(folder, record)
    return record


def export_corpus(corpus: Corpus, out: Path) -> dict[str, Any]:
    """Write a corpus as the original's SPLIT.LANG.pth and SPLIT.PAIR.LANG.pth files, with codes and vocab beside them.

    A language's split goes through memory as a whole, as it does in the original.

    Args:
        corpus: The corpus.
        out: The folder to make.

    Returns:
        The folder's record (export.json).
    """
    vocabulary = Vocabulary.from_file(corpus.vocab_path)
    record = {**_record("xlm-corpus", None, []), "lineage": {"corpus": corpus.lineage, "parents": []}}
    with whole_folder(out) as folder:
        for name, entry in entries(corpus.manifest):
            shards = [shard for shard in entry["shards"] if shard["tokens"]]
            if shards:
                begins = np.cumsum([0, *(shard["tokens"] for shard in shards)])
                ids = np.concatenate([np.load(corpus.path / shard["file"]) for shard in shards])
                starts = np.concatenate(
                    [
                        np.load(corpus.path / shard["index"]) + begin
                        for shard, begin in zip(shards, begins[:-1], strict=True)
                    ]
                )
                write_binarised(folder / f"{name}.pth", BinarisedText(ids, starts, vocabulary, {}))
        for path in (corpus.codes_path, corpus.vocab_path):
            (folder / path.name).write_bytes(path.read_bytes())
        _write_record(folder, record)
    return record


def _find_samples(given: Mapping[str, str], manifest: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Raw text of each language to try encode() on: the user's, else the corpus's inputs that are still there."""
    samples = {code: check.sample_lines(file) for code, file in given.items()}
    for split in ("valid", "test", "train"):
        for code, statistics in (manifest or {"splits": {}})["splits"].get(split, {}).items():
            for entry in statistics.get("inputs", []):
                if code not in samples and Path(entry["path"]).is_file():
                    try:
                        samples[code] = check.sample_lines(entry["path"])
                    except UserError:
                        continue  # not a text file by itself: a pattern, or parquet
    return samples


def _record(kind: str, content: Mapping[str, Any] | None, warnings: list[str]) -> dict[str, Any]:
    """export.json, but for the checksums of the files."""
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
        record["evaluation"] = content.get("evaluation", "causal")
        record["progress"] = {key: progress[key] for key in ("step", "updates")}
        record["text"] = {key: content["text"][key] for key in ("lowercase", "remove_accents")}
    return record


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    record["files"] = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
    write_json(folder / RECORD, record)


def summary(out: str, record: Mapping[str, Any]) -> str:
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
