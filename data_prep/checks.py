"""What can be wrong with a preparation's settings that is not seen in one of them alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep import learn_bpe
from data_prep.distributed import check_executor
from data_prep.sources import by_lines, sources_of
from data_prep.sources.jsonl import JsonLines
from data_prep.sources.pairs import AlignedInputs, PairSource, as_file, pair_sources_of
from data_prep.sources.parquet import ParquetFile
from xlm_train.config.files import path_of, unwritable
from xlm_train.config.schema import Rule, near
from xlm_train.data.manifest import LANGUAGE, SPLITS, languages_of
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.storage import cached, is_url, url_problems
from xlm_train.text.bpe_codes import BpeCodes, as_piece, read_limit
from xlm_train.text.files import Place, Source, TextFile
from xlm_train.text.vocabulary import SPECIALS, Vocabulary

Key = tuple[str, str]  # split, language

OURS = re.compile(r"manifest\.json|codes|vocab(\..+)?|report\.html|(train|valid|test)\..+\.npy")
AGREEMENT = 0.9  # share of a vocabulary's entries that its codes must be able to make
TEXT_PER_BYTE = {".gz": 2.7, ".bz2": 3.6, ".xz": 3.8, ".zst": 3.0, ".parquet": 1.8}  # typical for sentences
DISK_PER_TEXT_BYTE = 2.4  # tokenised + words + pieces + ids + binarised, all there at the same time at the end


def folder_of(out: str) -> Path:
    """Where a corpus is made: in `out` itself, or in the cache for a URL, to which it is uploaded in the end."""
    return cached("prepared", out) if is_url(out) else path_of(out)


def _languages(*splits: Any) -> list[str]:
    """Languages that text is given of, in any split."""
    return sorted({language for split in splits for language, value in (split or {}).items() if value is not None})


def _out_problems(given: str) -> Iterator[str]:
    out = path_of(given)
    if is_url(given):
        yield from url_problems("out", given, writes=True)
    elif out.exists() and not out.is_dir():
        yield f"out={out}: is a file; name a folder"
    elif out.is_dir():
        names = {path.name for path in out.iterdir()}
        others = sorted(name for name in names if OURS.fullmatch(name))
        folders = [name for name in (*others, ".lock") if (out / name).is_dir()]
        work = out / ".work"
        if (why := unwritable(out)) is not None:
            yield f"out={out}: cannot be written to: {why}"
        elif folders:
            yield f"out={out}: {', '.join(folders[:3])} in it: a folder where a file belongs; name another folder"
        elif work.exists() and (not work.is_dir() or work.stat().st_dev != out.stat().st_dev):
            yield f"out={out}: its .work must be a folder on the same file system, from which shards are moved"
        elif others and not names & {"manifest.json", ".work"}:
            yield f"out={out}: holds {', '.join(others[:3])} from elsewhere, to be overwritten; name another folder"
    else:
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        if (why := unwritable(parent)) is not None:
            yield f"out={out}: cannot be made: {why}"


def open_sources(
    given: Mapping[str, Mapping[str, Any]], parallel: Sequence[str]
) -> tuple[dict[Key, Sequence[Source]], list[str]]:
    """Open the inputs of all splits.

    Args:
        given: For each split the inputs by language.
        parallel: Splits in which line i of one language belongs to line i of the others.

    Returns:
        The sources, in the order given; and what is wrong with them.
    """
    sources: dict[Key, Sequence[Source]] = {}
    problems: list[str] = []
    keys = [(split, language) for split in SPLITS for language, value in given[split].items() if value is not None]
    for split, language in keys:
        key = f"{split}.{language}"
        if not LANGUAGE.fullmatch(language):
            problems.append(f"{key}: '{language}' is not a language code such as en, de or pt-BR")
            continue
        found, wrong = sources_of(key, given[split][language], language)
        problems += wrong
        try:
            sources[split, language] = [by_lines(source) for source in found] if split in parallel else found
        except ValueError as error:
            problems.append(f"parallel={split}: {key}: {error}")
    languages = sorted({language for _, language in keys})
    for split in SPLITS:
        have = [language for other, language in keys if other == split]
        instead = "" if split == "train" else f", or leave out {split} altogether to hold sentences out from train"
        problems += [
            f"{split}.{language}: is not given, but other text of {language} or {split} is; give it{instead}"
            for language in languages
            if have and language not in have
        ]
    return sources, problems + _given_twice(sources)


def _given_twice(sources: Mapping[Key, Sequence[Source]]) -> list[str]:
    problems = []
    owners: dict[Place, str] = {}
    for (split, language), entries in sources.items():
        for source in entries:
            if isinstance(source, (TextFile, ParquetFile, JsonLines)):
                key = f"{split}.{language}"
                first = owners.setdefault(source.path.resolve(), key)
                if first != key or sum(s == source for s in entries) > 1:
                    problems.append(
                        f"{key}: {source.name} is given twice" + (f" (also in {first})" if first != key else "")
                    )
    return list(dict.fromkeys(problems))


def open_pairs(given: Mapping[str, Mapping[str, Any]]) -> tuple[dict[Key, Sequence[PairSource]], list[str]]:
    """Open the inputs of parallel text.

    Args:
        given: For each pair the inputs by split.

    Returns:
        The sources by split and pair, the pair's languages in alphabetical order; and what is wrong with them.
    """
    sources: dict[Key, Sequence[PairSource]] = {}
    problems: list[str] = []
    for written, splits in given.items():
        languages = languages_of(written)
        if languages is None:
            problems.append(f"pairs.{written}: is not two different language codes, as de-en or en-pt-BR")
            continue
        ordered = (min(languages), max(languages))
        name = "-".join(ordered)
        if name != written:
            log(
                f"pairs.{written} is named {name} in the corpus, its languages in alphabetical order; the sides are swapped"
            )
        for split, value in splits.items():
            key = f"pairs.{written}.{split}"
            if split not in SPLITS:
                problems.append(f"{key}: there is no split '{split}'{near(split, SPLITS) or ' (train, valid or test)'}")
            elif (split, name) in sources:
                problems.append(f"{key}: is given twice: as {name} and as {'-'.join(ordered[::-1])}")
            elif value is not None:
                sources[split, name], wrong = pair_sources_of(key, value, ordered, name != written)
                problems += wrong
    return sources, problems + _pairs_given_twice(sources)


def _pairs_given_twice(sources: Mapping[Key, Sequence[PairSource]]) -> list[str]:
    problems = []
    owners: dict[Any, str] = {}
    for (split, pair), entries in sources.items():
        for source in entries:
            sides = source.sides if isinstance(source, AlignedInputs) else [source]
            for given, name in zip(sides, source.names, strict=False):
                one, key = as_file(given), f"pairs.{pair}.{split}"
                if one in owners:
                    problems.append(f"{key}: {name} is given twice (also in {owners[one]})")
                owners[one] = key
    return problems


def _text_problems(
    train: Any, valid: Any, test: Any, pairs: Any, codes: str | None, vocab: str | None
) -> Iterator[str]:
    paired = {
        split
        for splits in pairs.values()
        if isinstance(splits, dict)
        for split, value in splits.items()
        if value is not None
    }
    if not _languages(train, valid, test) and not paired:
        yield "no text is given: train.LANG=[FILE, ...] for each language"
    elif not _languages(train) and "train" not in paired and not (codes and vocab):
        yield (
            "no training text is given: give train.LANG=[FILE, ...] for each language, or codes=FILE and vocab=FILE to "
            "prepare other text for a model that was trained with them"
        )


def _parallel_problems(parallel: list[str], valid: Any, test: Any) -> Iterator[str]:
    for split in parallel:
        if split == "train":
            yield "parallel=train: train cannot be parallel text"
        elif split not in SPLITS:
            yield f"parallel={split}: must be among {', '.join(SPLITS)}"
        elif not _languages(valid if split == "valid" else test):
            yield f"parallel={split}: {split} is not given"


def _limit_problems(vocab_limit: list[str]) -> Iterator[str]:
    for split in vocab_limit:
        if split not in SPLITS:
            yield f"bpe.vocab_limit={split}: must be among {', '.join(SPLITS)}"


def _problems_of(key: str, action: Callable[..., Any], *arguments: Any) -> list[str]:
    """What an action finds wrong with a setting."""
    try:
        action(*arguments)
    except UserError as error:
        return [f"{key}{problem}" for problem in error.problems]
    return []


def _codes_problems(codes_given: str | None, vocab_given: str | None) -> list[str]:
    if not codes_given:
        return [f"vocab={path_of(vocab_given)}: needs the codes it was made with (codes=FILE)"] if vocab_given else []
    problems = _problems_of("codes: ", BpeCodes.from_file, path_of(codes_given))
    if not vocab_given:
        return problems
    problems += _problems_of("vocab: ", Vocabulary.from_file, path_of(vocab_given))
    if problems:
        return problems
    made = {as_piece(left + right) for left, right, _ in BpeCodes.from_file(path_of(codes_given)).merges}
    words = Vocabulary.from_file(path_of(vocab_given)).words[len(SPECIALS) :]
    mismatched = [word for word in words if word not in made and len(word.removesuffix("@@")) > 1]
    if len(mismatched) > (1 - AGREEMENT) * len(words):
        return [
            f"vocab={path_of(vocab_given)}: does not belong to codes={path_of(codes_given)}: {len(mismatched):,} of its "
            f"{len(words):,} entries, such as {mismatched[0]}, cannot be made with them"
        ]
    return []


def _engine_problems(engine: str, codes: str | None, vocab: str | None) -> list[str]:
    return [] if codes or vocab else _problems_of("", learn_bpe.check_engine, engine)


def _language_vocab_problems(
    given: Mapping[str, str | None], codes: str | None, pairs: Any, *splits: Any
) -> Iterator[str]:
    files = {language: path_of(file) for language, file in given.items() if file is not None}
    languages = sorted({*_languages(*splits), *(code for pair in pairs for code in languages_of(pair) or ())})
    if files:
        for language in languages:
            if language not in files:
                yield f"language_vocab.{language}: is not given, but another language's is"
        if not codes:
            yield "language_vocab: needs the codes it was made with (codes=FILE)"
    for language, path in files.items():
        key = f"language_vocab.{language}: "
        if language not in languages:
            yield f"{key}no text of {language} is given"
        yield from _problems_of(key, read_limit, path) or _problems_of(key, Vocabulary.from_file, path)


def disk_problems(out: Path, inputs: Sequence[Sequence[Source | PairSource]]) -> list[str]:
    """What is wrong where the text, by its estimated size, needs more room than the disk of `out` has."""
    text_bytes = sum(_text_bytes(source) for sources in inputs for source in sources)
    there = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) if out.is_dir() else 0
    needed = int(text_bytes * DISK_PER_TEXT_BYTE) - there
    free = shutil.disk_usage(
        next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    ).free
    if needed <= free:
        return []
    unit, name = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
    return [
        f"out={out}: about {needed / unit:.1f} {name} are needed there, {free / unit:.1f} {name} are free "
        "(an estimate; check_disk=false starts all the same)"
    ]


def _text_bytes(source: Source | PairSource) -> int:
    """Estimate of the decompressed size; 0 where nothing is known."""
    if isinstance(source, AlignedInputs):
        return sum(map(_text_bytes, source.sides))
    path = getattr(getattr(source, "source", source), "path", None)
    return int((source.size or 0) * (TEXT_PER_BYTE.get(path.suffix, 1.0) if path else 1.0))


RULES = (
    Rule(("out",), _out_problems),
    Rule((*SPLITS, "pairs", "codes", "vocab"), _text_problems),
    Rule(("parallel", "valid", "test"), _parallel_problems),
    Rule(("bpe.vocab_limit",), _limit_problems),
    Rule(("codes", "vocab"), _codes_problems),
    Rule(("bpe.engine", "codes", "vocab"), _engine_problems),
    Rule(("language_vocab", "codes", "pairs", *SPLITS), _language_vocab_problems),
    Rule(("executor", "slurm"), lambda executor, slurm: _problems_of("", check_executor, executor, slurm)),
)
