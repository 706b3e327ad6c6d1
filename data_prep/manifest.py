"""The manifest of a finished corpus."""

from __future__ import annotations

import platform
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from data_prep import fastbpe, statistics
from data_prep.binarise import Binarised
from data_prep.settings import Key, Settings
from data_prep.stages import read_codes, read_vocabulary
from data_prep.text import BpeFiles, Encoded, PairTexts, Text, Texts
from xlm_train.data.manifest import FORMAT, SPLITS, VERSION, lineage
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import sha256_of
from xlm_train.text.tokenise import RULES_VERSION

OFTEN = 20  # times that a merge is made in the text it is learned on, to be of use in other text
PIPELINE_VERSION = "3"
"""Raised when a change here, in BPE or in binarising changes any output byte."""


def tools(settings: Settings) -> dict[str, str]:
    """Version of everything that has a part in the bytes."""
    found = {"pipeline": PIPELINE_VERSION, "tokeniser_rules": RULES_VERSION}
    found |= {name: version(name) for name in ("numpy", "sacremoses")}
    if settings.lowercase or settings.remove_accents:
        found["unicode"] = unicodedata.unidata_version
        found["repeats"] = "lower-cased"  # sentences that differ in case or accents alone were none
    every: list[Any] = [source for sources in settings.sources.values() for source in sources]
    every += [
        side
        for sources in settings.pair_sources.values()
        for source in sources
        for side in getattr(source, "sides", ())
    ]
    if any(getattr(source, "row_is_line", False) for source in every):
        found["rows"] = "lines"  # a row was what its text's lines came to, and those behind it were shifted
    if settings.codes_file is None:
        found["fastBPE"] = fastbpe.VERSION  # whose codes they are, whoever learned them
    return found


def describe(
    settings: Settings,
    tools: Mapping[str, str],
    texts: Texts,
    pairs: PairTexts,
    encoded: Mapping[Key, Encoded],
    corpus: Mapping[Key, Binarised],
    orders: Mapping[str, Mapping[str, Any]],
    bpe: BpeFiles,
) -> dict[str, Any]:
    """The manifest of a finished corpus, as it is written.

    Args:
        settings: What was asked for.
        tools: Versions, as `tools` gives them.
        texts: Tokenised text, sides of pairs too.
        pairs: The pairs.
        encoded: The ids of each text.
        corpus: The shards of each text.
        orders: The length order of each text that is no side of a pair, and of all pairs, by name.
        bpe: Codes and vocabularies.

    Raises:
        UserError: No sentence is left of a split.
    """
    codes, vocabulary = read_codes(bpe.codes), read_vocabulary(bpe.vocab)
    splits: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    unknown = "do codes and vocabulary belong to this text?"
    if settings.codes_file is None:
        often = sum(count >= OFTEN for _, _, count in codes.merges)
        unknown = (
            f"bpe.n_codes={settings.bpe.n_codes} is too many for so little text; "
            f"about {often} would do, which are made {OFTEN} times or more"
            if often < settings.bpe.n_codes
            else "is it of another kind than the training text?"
        )
    if settings.codes_file is None and len(codes) < settings.bpe.n_codes:
        warnings.append(f"only {len(codes):,} of {settings.bpe.n_codes:,} codes could be learned: the text is small")
    if settings.bpe.vocab_limit and not settings.limited:
        warnings.append(
            "no vocabulary limit: there is neither training text nor language_vocab.LANG=FILE to know each language's own "
            "vocabulary from; the original's recipe limits validation and test sets (bpe.vocab_limit=[] is without)"
        )
    for text in sorted(texts.values(), key=lambda text: (SPLITS.index(text.split), text.language)):
        if text.pair is None:
            raw, entry = _counts(text, encoded[text.key], corpus[text.key])
            warnings += statistics.warnings_for(text.name, text.language, raw, entry, unknown)
            warnings += statistics.long_line_warnings(text.name, entry["dropped"]["too_long"], text.first_long_line)
            splits.setdefault(text.split, {})[text.language] = entry | {"bylength": orders[text.name]}
    described: dict[str, dict[str, Any]] = {}
    for pair in sorted(pairs.values(), key=lambda pair: (SPLITS.index(pair.split), pair.pair)):
        sides = {}
        for side in pair.sides:
            raw, sides[side.language] = _counts(side, encoded[side.key], corpus[side.key])
            warnings += statistics.warnings_for(
                side.name, side.language, raw, pair.counts | sides[side.language], unknown
            )
        of_pairs = {"sentences": sides[pair.languages[0]]["sentences"], "lines": sum(pair.lines), **pair.counts}
        warnings += statistics.pair_warnings(pair.name, of_pairs)
        first = pair.sides[0].first_long_line or pair.sides[1].first_long_line
        warnings += statistics.long_line_warnings(pair.name, of_pairs["dropped"]["too_long"], first)
        described.setdefault(pair.split, {})[pair.pair] = of_pairs | {"sides": sides, "bylength": orders[pair.name]}
        splits.setdefault(pair.split, {})
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "languages": {language: number for number, language in enumerate(settings.languages)},
        "dtype": vocabulary.dtype.name,
        "vocabulary": {"file": "vocab", "sha256": sha256_of(bpe.vocab), "entries": len(vocabulary)},
        "codes": {"file": "codes", "sha256": sha256_of(bpe.codes), "merges": len(codes)},
        "language_vocabularies": {
            language: {"file": f"vocab.{language}", "sha256": sha256_of(path)} for language, path in bpe.limits.items()
        },
        "splits": splits,
        **({"pairs": described} if described else {}),
        "parallel": {split: list(settings.languages) for split in settings.parallel},
        "text": {"lowercase": settings.lowercase, "remove_accents": settings.remove_accents},
        "settings": settings.that_shape_the_corpus(),
        "tools": {"python": platform.python_version(), **tools},
        "warnings": warnings,
    }
    manifest["lineage"] = lineage(manifest)
    return manifest


def _counts(text: Text, encoded: Encoded, binarised: Binarised) -> tuple[statistics.RawCounts | None, dict[str, Any]]:
    """Of one text: counts of its raw text (None: held out, it has none of its own), manifest entry."""
    if not binarised.sentences:
        raise UserError(f"{text.name}: no line is left of it")
    pieces = binarised.tokens - binarised.sentences
    entry = {
        "sentences": binarised.sentences,
        "tokens": binarised.tokens,
        "unknown": encoded.unknown,
        "words": encoded.words,
        "characters": text.characters,
        "tokens_per_word": round(pieces / max(encoded.words, 1), 6),
        "unknown_rate": round(encoded.unknown / max(pieces, 1), 9),
        "length": statistics.percentiles(binarised.lengths),
        "lines": sum(text.lines) + text.dropped_lines.long_lines,
        "empty": text.raw.empty,
        **text.counts,
        "special_words": dict(encoded.special_words),
        "raw": {**text.raw.totals(), "bom": text.dropped_lines.bom} if text.given else None,
        "scripts": statistics.script_shares(text.raw.scripts),
        "shards": binarised.shards,
        "inputs": text.inputs,
    }
    return (text.raw if text.given else None), entry
