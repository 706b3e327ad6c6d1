"""What a preparation is asked to do, checked as a whole before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from data_prep.checks import RULES, Key, disk_problems, folder_of, open_pairs, open_sources
from data_prep.distributed import EXECUTORS
from data_prep.learn_bpe import ENGINES
from data_prep.sources.pairs import PairSource
from xlm_train.config.files import path_of
from xlm_train.config.schema import build, check_fields, check_rules, one_of, resolve
from xlm_train.data.manifest import SPLITS, languages_of
from xlm_train.runtime.errors import ConfigError
from xlm_train.runtime.storage import is_url
from xlm_train.text.files import Source

if TYPE_CHECKING:
    from omegaconf import DictConfig


def whole(low: int, high: int) -> Callable[[int], str | None]:
    """Check of a field: a whole number from `low` to `high`."""
    return lambda value: None if low <= value <= high else f"must be a whole number from {low:,} to {high:,}"


def by_language(key: str) -> Callable[[Any], str | None]:
    """Check of a field: a mapping by language code; `key` names the field in the message."""
    wrong = f"which language? give {key}.en=... (any language code)"
    return lambda value: None if isinstance(value, dict) else wrong


def by_pair(value: Any) -> str | None:
    """Check of the field `pairs`: a mapping by pair and split."""
    if isinstance(value, dict) and all(isinstance(splits, dict) for splits in value.values()):
        return None
    return "which pair and split? give 'pairs.de-en.train=[FILE.de,FILE.en]' (any language codes)"


@dataclass(frozen=True)
class BpeSettings:
    """The section `bpe` of configs/prep.yaml, which tells what each means."""

    n_codes: Annotated[int, whole(1, 10_000_000)]
    engine: Annotated[str, one_of(*ENGINES)]
    sample: Annotated[str, one_of("alpha", "all")]
    sample_sentences: Annotated[int, whole(1, 10**12)]
    max_words: Annotated[int | None, whole(1, 10**12)]
    alpha: Annotated[float, lambda value: None if 0 <= value <= 10 else "must be a number from 0 to 10"]
    vocab_limit: list[str]


@dataclass(frozen=True)
class HoldoutSettings:
    """The section `holdout` of configs/prep.yaml, which tells what each means."""

    sentences: Annotated[int, whole(1, 10**8)]


@dataclass
class Settings:
    """A checked request: configs/prep.yaml, which tells what each means, field for field.

    Attributes:
        sources: The opened inputs, by split and language.
        pair_sources: Those of parallel text, by split and pair.
    """

    out: str
    train: Annotated[Any, by_language("train")]
    valid: Annotated[Any, by_language("valid")]
    test: Annotated[Any, by_language("test")]
    pairs: Annotated[Any, by_pair]
    raw: str
    parallel: list[str]
    codes: str | None
    vocab: str | None
    language_vocab: dict[str, str | None]
    bpe: BpeSettings
    lowercase: bool
    remove_accents: bool
    decode_errors: Annotated[str, one_of("replace", "stop")]
    max_line_bytes: Annotated[int, whole(1, 1 << 24)]
    holdout: HoldoutSettings
    deduplicate: bool
    remove_test_overlap: bool
    seed: Annotated[int, whole(0, 2**63 - 1)]
    workers: Annotated[int | None, whole(1, 1024)]
    executor: Annotated[str, one_of(*EXECUTORS)]
    tasks: Annotated[int, whole(1, 100_000)]
    slurm: dict[str, Any]
    piece_bytes: Annotated[int, whole(1, 1 << 30)]
    shard_tokens: Annotated[int, whole(1, 1 << 40)]
    overwrite: bool
    keep_work: bool
    check_disk: bool
    sources: Mapping[Key, Sequence[Source]] = field(init=False)
    pair_sources: Mapping[Key, Sequence[PairSource]] = field(init=False)

    @property
    def folder(self) -> Path:
        """The folder that the corpus is made in."""
        return folder_of(self.out)

    @property
    def place(self) -> str:
        """Where the corpus is when it is finished, for messages."""
        return self.out if is_url(self.out) else str(self.folder)

    @property
    def codes_file(self) -> Path | None:
        """The given BPE codes."""
        return path_of(self.codes) if self.codes else None

    @property
    def vocab_file(self) -> Path | None:
        """The given vocabulary."""
        return path_of(self.vocab) if self.vocab else None

    @property
    def language_vocab_files(self) -> dict[str, Path]:
        """The given vocabularies of each language."""
        return {language: path_of(file) for language, file in self.language_vocab.items() if file is not None}

    @property
    def languages(self) -> list[str]:
        """All languages, in the order of their ids."""
        of_pairs = {language for _, pair in self.pair_sources for language in languages_of(pair) or ()}
        return sorted({language for _, language in self.sources} | of_pairs)

    @property
    def learning_order(self) -> list[str]:
        """Languages with training text in the order given: between equally frequent pairs it counts which was read first.

        Those of parallel text come last.
        """
        of_pairs = [
            language for split, pair in self.pair_sources if split == "train" for language in languages_of(pair) or ()
        ]
        return list(dict.fromkeys([*self.trained, *of_pairs]))

    @property
    def trained(self) -> list[str]:
        """Languages with training text by itself, not of pairs, in the order given."""
        return [language for split, language in self.sources if split == "train"]

    @property
    def held_out(self) -> tuple[str, ...]:
        """Splits that are not given and so come from the training text."""
        given = {split for split, _ in self.sources}
        return tuple(split for split in SPLITS if split not in given) if self.trained else ()

    @property
    def held_out_pairs(self) -> dict[str, tuple[str, ...]]:
        """The same of each pair that there is training text of."""
        found = {}
        for pair in sorted({pair for split, pair in self.pair_sources if split == "train"}):
            found[pair] = tuple(split for split in SPLITS if (split, pair) not in self.pair_sources)
        return found

    @property
    def limited(self) -> list[str]:
        """Splits that the vocabulary limit is applied to: none where there is no language's own vocabulary to be had."""
        return self.bpe.vocab_limit if self.learning_order or self.language_vocab_files else []

    def that_shape_the_corpus(self) -> dict[str, Any]:
        """All settings that can change a byte of the corpus; the rest only changes how it is made."""
        learned = self.codes_file is None
        drawn = learned and self.bpe.sample == "alpha"
        held_out = self.held_out or any(self.held_out_pairs.values())
        return {
            "bpe": {
                "n_codes": self.bpe.n_codes if learned else None,
                "order": self.learning_order if learned else None,
                "sample": self.bpe.sample if learned else None,
                "sample_sentences": self.bpe.sample_sentences if drawn else None,
                "alpha": float(self.bpe.alpha) if drawn else None,
                "vocab_limit": sorted(set(self.limited)),
                "codes_given": not learned,
                "vocab_given": self.vocab_file is not None,
                "language_vocab_given": bool(self.language_vocab_files),
                "max_words": self.bpe.max_words if drawn else None,
            },
            "lowercase": self.lowercase,
            "remove_accents": self.remove_accents,
            "decode_errors": self.decode_errors,
            "max_line_bytes": self.max_line_bytes,
            "holdout": {"splits": list(self.held_out), "sentences": self.holdout.sentences if held_out else None},
            "deduplicate": self.deduplicate,
            "remove_test_overlap": self.remove_test_overlap,
            "parallel": sorted(set(self.parallel)),
            "seed": self.seed,
            "shard_tokens": self.shard_tokens,
        } | (
            {"pairs": {pair: list(splits) for pair, splits in self.held_out_pairs.items()}} if self.pair_sources else {}
        )


def read_settings(config: DictConfig) -> Settings:
    """Check a request.

    Args:
        config: In the shape of configs/prep.yaml.

    Raises:
        ConfigError: With everything that is wrong with it.
    """
    from omegaconf import OmegaConf

    values, problems = resolve(cast(dict[str, Any], OmegaConf.to_container(config)))
    _plain(values, ("parallel",), list)
    _plain(values, ("pairs", "language_vocab", "slurm"), dict)
    _plain(values.get("bpe"), ("vocab_limit",), list)
    good, wrong = check_fields(Settings, values)
    sources, wrong_sources = open_sources(
        {split: good.get(split) or {} for split in SPLITS}, good.get("parallel") or []
    )
    pair_sources, wrong_pairs = open_pairs(good.get("pairs") or {})
    problems += [*wrong, *wrong_sources, *wrong_pairs, *check_rules(RULES, good)]
    if not problems and values["check_disk"]:
        problems = disk_problems(folder_of(values["out"]), [*sources.values(), *pair_sources.values()])
    if problems:
        raise ConfigError(problems)
    settings = build(Settings, values)
    settings.sources, settings.pair_sources = sources, pair_sources
    return settings


def _plain(section: Any, keys: Sequence[str], kind: type[list[Any]] | type[dict[str, Any]]) -> None:
    """Let null stand for an empty list or mapping, and a word for a list of it."""
    for key in keys if isinstance(section, dict) else ():
        value = section.get(key)
        if value is None:
            section[key] = kind()
        elif kind is list and isinstance(value, str):
            section[key] = [value]
