"""What a preparation is asked to do, checked as a whole before any work starts."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import learn_bpe
from data_prep.distributed import EXECUTORS, check_executor
from data_prep.sources import Source, sources_of
from data_prep.sources.parquet import ParquetFile
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.text.bpe_codes import BpeCodes, as_piece, read_limit
from xlm_train.text.files import TextFile
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import SPECIALS, Vocabulary

SPLITS = ("train", "valid", "test")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?")
OURS = re.compile(r"manifest\.json|codes|vocab(\..+)?|report\.html|(train|valid|test)\..+\.npy")
AGREEMENT = 0.9  # share of a vocabulary's entries that its codes must be able to make
TEXT_PER_BYTE = {".gz": 2.7, ".bz2": 3.6, ".xz": 3.8, ".zst": 3.0, ".parquet": 1.8}  # typical for sentences
DISK_PER_TEXT_BYTE = 2.4  # tokenised + words + pieces + ids + binarised, all there at the same time at the end

Key = tuple[str, str]  # split, language


@dataclass(frozen=True)
class Settings:
    """A checked request. What each means: configs/prep.yaml, field for field."""

    out: Path
    sources: Mapping[Key, Sequence[Source]]
    parallel: tuple[str, ...]
    codes: Path | None
    vocab: Path | None
    language_vocab: Mapping[str, Path]
    n_codes: int
    engine: str
    sample: str
    sample_sentences: int
    alpha: float
    vocab_limit: tuple[str, ...]
    lowercase: bool
    remove_accents: bool
    decode_errors: str
    max_line_bytes: int
    holdout_sentences: int
    deduplicate: bool
    remove_test_overlap: bool
    seed: int
    executor: str
    tasks: int
    slurm: Mapping[str, Any]
    workers: int
    piece_bytes: int
    shard_tokens: int
    keep_work: bool

    @property
    def languages(self) -> list[str]:
        return sorted({language for _, language in self.sources})

    @property
    def learning_order(self) -> list[str]:
        """Languages in the order given: fastBPE breaks ties between pairs by what it reads first."""
        return [language for split, language in self.sources if split == "train"]

    @property
    def held_out(self) -> tuple[str, ...]:
        """Splits that are not given and so come from the training text."""
        given = {split for split, _ in self.sources}
        return tuple(split for split in SPLITS if split not in given) if self.has_training_text else ()

    @property
    def has_training_text(self) -> bool:
        return any(split == "train" for split, _ in self.sources)

    @property
    def limited(self) -> tuple[str, ...]:
        """Splits that the vocabulary limit is applied to: none where there is no language's own vocabulary to be had."""
        return self.vocab_limit if self.has_training_text or self.language_vocab else ()

    @property
    def text_bytes(self) -> int:
        """Estimate of the raw text's size, decompressed. Sources of unknown size count nothing."""
        return sum(_text_bytes(source) for sources in self.sources.values() for source in sources)

    def that_shape_the_corpus(self) -> dict[str, Any]:
        """All settings that can change a byte of the corpus; the rest only changes how it is made."""
        return {
            "bpe": {
                "n_codes": None if self.codes else self.n_codes,
                "engine": None if self.codes else self.engine,
                "order": self.learning_order if self.codes is None and self.engine == "fastbpe" else None,
                "sample": None if self.codes else self.sample,
                "sample_sentences": self.sample_sentences if self.codes is None and self.sample == "alpha" else None,
                "alpha": self.alpha if self.codes is None and self.sample == "alpha" else None,
                "vocab_limit": sorted(self.limited),
                "codes_given": self.codes is not None,
                "vocab_given": self.vocab is not None,
                "language_vocab_given": bool(self.language_vocab),
            },
            "lowercase": self.lowercase,
            "remove_accents": self.remove_accents,
            "decode_errors": self.decode_errors,
            "max_line_bytes": self.max_line_bytes,
            "holdout": {"splits": list(self.held_out), "sentences": self.holdout_sentences if self.held_out else None},
            "deduplicate": self.deduplicate,
            "remove_test_overlap": self.remove_test_overlap,
            "parallel": sorted(self.parallel),
            "seed": self.seed,
            "shard_tokens": self.shard_tokens,
        }


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Check a request in the shape of configs/prep.yaml. Raises ConfigError with everything that is wrong with it."""
    problems: list[str] = []

    def number(key: str, low: float, high: float, whole: bool = True) -> Any:
        value = _select(config, key)
        good = (
            isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and low <= value <= high
        )
        if not good:
            problems.append(f"{key}={value}: must be a {'whole ' if whole else ''}number from {low:,} to {high:,}")
        return value if good else low

    def choice(key: str, *options: Any) -> Any:
        value = _select(config, key)
        if value not in options or isinstance(value, int) != isinstance(options[0], int):
            problems.append(f"{key}={value}: must be one of {', '.join(str(option) for option in options)}")
        return value

    def splits(key: str, allowed: Sequence[str]) -> tuple[str, ...]:
        value = _select(config, key) or []
        names = [value] if isinstance(value, str) else list(value)
        problems.extend(f"{key}={name}: must be among {', '.join(allowed)}" for name in names if name not in allowed)
        return tuple(dict.fromkeys(names))

    out = Path(str(config["out"])).expanduser()
    problems += _out_problems(out)
    sources, source_problems = _sources(config)
    problems += source_problems
    given = {split for split, _ in sources}
    workers = config["workers"] if config["workers"] is None else number("workers", 1, 1024)
    codes, vocab = (Path(config[name]).expanduser() if config[name] else None for name in ("codes", "vocab"))
    settings = Settings(
        out=out,
        sources=sources,
        parallel=splits("parallel", SPLITS),
        codes=codes,
        vocab=vocab,
        language_vocab={
            str(language): Path(str(file)).expanduser()
            for language, file in (config["language_vocab"] or {}).items()
            if file is not None
        },
        n_codes=number("bpe.n_codes", 1, 10_000_000),
        engine=choice("bpe.engine", *learn_bpe.ENGINES),
        sample=choice("bpe.sample", "alpha", "all"),
        sample_sentences=number("bpe.sample_sentences", 1, 10**12),
        alpha=float(number("bpe.alpha", 0, 10, whole=False)),
        vocab_limit=splits("bpe.vocab_limit", SPLITS),
        lowercase=choice("lowercase", False, True),
        remove_accents=choice("remove_accents", False, True),
        decode_errors=choice("decode_errors", "replace", "stop"),
        max_line_bytes=number("max_line_bytes", 1, 1 << 24),
        holdout_sentences=number("holdout.sentences", 1, 10**8),
        deduplicate=choice("deduplicate", False, True),
        remove_test_overlap=choice("remove_test_overlap", False, True),
        seed=number("seed", 0, 2**63 - 1),
        executor=choice("executor", *EXECUTORS),
        tasks=number("tasks", 1, 100_000),
        slurm=dict(config["slurm"] or {}),
        workers=workers or _cores(),
        piece_bytes=number("piece_bytes", 1, 1 << 30),
        shard_tokens=number("shard_tokens", 1, 1 << 40),
        keep_work=choice("keep_work", False, True),
    )
    problems += [
        f"parallel={split}: {split} is not given"
        if split not in given
        else f"parallel={split}: train cannot be parallel text"
        for split in settings.parallel
        if split not in given or split == "train"
    ]
    problems += _bpe_problems(settings)
    try:
        check_executor(settings.executor, settings.slurm)
    except UserError as error:
        problems += error.problems
    if choice("check_disk", False, True) and not problems:
        problems += _disk_problems(settings)
    if problems:
        raise ConfigError(problems)
    return settings


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _select(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node[part]
    return node


def _out_problems(out: Path) -> list[str]:
    if out.exists() and not out.is_dir():
        return [f"out={out}: is a file; name a folder"]
    if out.is_dir():
        if not os.access(out, os.W_OK | os.X_OK):
            return [f"out={out}: cannot be written to"]
        names = {path.name for path in out.iterdir()}
        if not names & {"manifest.json", ".work"} and (
            others := sorted(name for name in names if OURS.fullmatch(name))
        ):
            return [f"out={out}: holds {', '.join(others[:3])} from elsewhere, to be overwritten; name another folder"]
        return []
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return [f"out={out}: cannot be made: {parent} cannot be written to"]
    return []


def _sources(config: Mapping[str, Any]) -> tuple[dict[Key, Sequence[Source]], list[str]]:
    problems = [
        f"{split}={config[split]}: which language? give {split}.en=... (any language code)"
        for split in SPLITS
        if config[split] is not None and not isinstance(config[split], Mapping)
    ]
    if problems:
        return {}, problems
    sources: dict[Key, Sequence[Source]] = {}
    keys = [
        (split, str(language))
        for split in SPLITS
        for language, value in (config[split] or {}).items()
        if value is not None
    ]
    for split, language in keys:
        key = f"{split}.{language}"
        if not LANGUAGE.fullmatch(language):
            problems.append(f"{key}: '{language}' is not a language code such as en, de or pt-BR")
            continue
        try:
            Tokeniser(language)
        except UserError as error:
            problems += [f"{key}: {problem}" for problem in error.problems]
        sources[split, language], wrong = sources_of(key, config[split][language], language)
        problems += wrong
    languages = sorted({language for _, language in keys})
    for split in SPLITS:
        have = [language for other, language in keys if other == split]
        if have:
            missing = [language for language in languages if language not in have]
            instead = "" if split == "train" else f", or leave out {split} altogether to hold sentences out from train"
            problems += [
                f"{split}.{language}: is not given, but other text of {language} or {split} is; give it{instead}"
                for language in missing
            ]
    if not keys:
        problems.append("no text is given: train.LANG=[FILE, ...] for each language")
    elif not any(split == "train" for split, _ in keys) and not (config["codes"] and config["vocab"]):
        problems.append(
            "no training text is given: give train.LANG=[FILE, ...] for each language, or codes=FILE and vocab=FILE to "
            "prepare other text for a model that was trained with them"
        )
    return sources, problems + _given_twice(sources)


def _given_twice(sources: Mapping[Key, Sequence[Source]]) -> list[str]:
    problems = []
    owners: dict[Path, str] = {}
    for (split, language), entries in sources.items():
        for source in entries:
            if isinstance(source, (TextFile, ParquetFile)):
                key = f"{split}.{language}"
                first = owners.setdefault(source.path.resolve(), key)
                if first != key or sum(s == source for s in entries) > 1:
                    problems.append(
                        f"{key}: {source.name} is given twice" + (f" (also in {first})" if first != key else "")
                    )
    return list(dict.fromkeys(problems))


def _bpe_problems(settings: Settings) -> list[str]:
    problems: list[str] = []
    codes = vocab = None
    problems += _language_vocab_problems(settings)
    if settings.codes is None:
        if settings.vocab is not None:
            problems.append(f"vocab={settings.vocab}: needs the codes it was made with (codes=FILE)")
        elif settings.engine in learn_bpe.ENGINES:
            try:
                learn_bpe.check_engine(settings.engine)
            except UserError as error:
                problems += error.problems
        return problems
    try:
        codes = BpeCodes.from_file(settings.codes)
    except UserError as error:
        problems += [f"codes: {problem}" for problem in error.problems]
    if settings.vocab is not None:
        try:
            vocab = Vocabulary.from_file(settings.vocab)
        except UserError as error:
            problems += [f"vocab: {problem}" for problem in error.problems]
    if codes is not None and vocab is not None:
        made = {as_piece(left + right) for left, right, _ in codes.merges}
        words = vocab.words[len(SPECIALS) :]
        mismatched = [word for word in words if word not in made and len(word.removesuffix("@@")) > 1]
        if len(mismatched) > (1 - AGREEMENT) * len(words):
            problems.append(
                f"vocab={settings.vocab}: does not belong to codes={settings.codes}: {len(mismatched):,} of its "
                f"{len(words):,} entries, such as {mismatched[0]}, cannot be made with them"
            )
    return problems


def _language_vocab_problems(settings: Settings) -> list[str]:
    given = settings.language_vocab
    if not given:
        return []
    problems = [
        f"language_vocab.{language}: is not given, but another language's is"
        for language in settings.languages
        if language not in given
    ]
    for language, path in given.items():
        if language not in settings.languages:
            problems.append(f"language_vocab.{language}: no text of {language} is given")
        try:
            read_limit(path)
            Vocabulary.from_file(path)
        except UserError as error:
            problems += [f"language_vocab.{language}: {problem}" for problem in error.problems]
    if settings.codes is None:
        problems.append("language_vocab: needs the codes it was made with (codes=FILE)")
    return problems


def _text_bytes(source: Source) -> int:
    path = getattr(source, "path", None)
    return int((source.size or 0) * (TEXT_PER_BYTE.get(path.suffix, 1.0) if path else 1.0))


def _disk_problems(settings: Settings) -> list[str]:
    folder = next(folder for folder in (settings.out.absolute(), *settings.out.absolute().parents) if folder.exists())
    there = (
        sum(file.stat().st_size for file in settings.out.rglob("*") if file.is_file()) if settings.out.is_dir() else 0
    )
    needed = int(settings.text_bytes * DISK_PER_TEXT_BYTE) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        unit, name = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        return [
            f"out={settings.out}: about {needed / unit:.1f} {name} are needed there, {free / unit:.1f} {name} are free "
            "(an estimate; check_disk=false starts all the same)"
        ]
    return []
