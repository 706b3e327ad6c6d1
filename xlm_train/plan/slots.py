"""The slots of a run by its config alone: what each objective in it reads, and how often.

Without a corpus sentences are taken to be of USUAL_LENGTH tokens for time, and as long as allowed for memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xlm_train.config.parts import parts_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from xlm_train.data.corpus import Corpus
    from xlm_train.model.flops import Row

USUAL_LENGTH = 30  # tokens of a sentence with both eos: news in 60,000 codes, assumed


@dataclass(frozen=True)
class SlotKind:
    """The slots of one objective.

    Args:
        kind: The objective's class.
        reads: Windows, sentences or pairs (objectives/objective.py).
        share: Of all slots of the run.
        tokens: That a slot reads.
        row: One of its rows.
    """

    kind: Any
    reads: str
    share: float
    tokens: int
    row: Row

    @property
    def rows(self) -> float:
        """Rows of a slot."""
        return self.tokens / self.row.tokens

    @property
    def predicted(self) -> float:
        """Tokens of a slot that are predicted."""
        share = 1 if self.row.mask_share is None else self.row.mask_share
        return max(1.0, self.rows * self.row.positions * share)

    @property
    def length(self) -> int:
        """Tokens of a window, of a pair in one row, or of a sentence."""
        return int(self.row.positions + 1 if self.row.source else self.row.tokens)


def slot_kinds(config: Mapping[str, Any], n_langs: int, corpus: Corpus | None = None) -> list[SlotKind]:
    """List the kinds of slots of a run, their rows of the mean length.

    By turns an objective has as many steps in an iteration as it has languages or directions; that its weight falls to 0 in
    the end is not counted.

    Args:
        config: Resolved and checked.
        n_langs: Languages of the model.
        corpus: Whose sentences are measured; None: they are of the usual length.
    """
    shares = config["objective"].get("shares") or {
        name: _streams(kind, settings, n_langs) for name, (kind, settings) in parts_of(config["objective"]).items()
    }
    longest = _longest(config)
    found = []
    for name, slot in longest.items():
        if slot.reads != "windows":
            length = _mean_length(corpus, slot.reads, config["data"]["max_len"]) if corpus else USUAL_LENGTH
            slot = _slot(config, slot.kind, slot.row.mask_share, length)
        found.append(replace(slot, share=shares[name] / sum(shares.values())))
    return found


def largest_slot(config: Mapping[str, Any]) -> SlotKind:
    """The slot that takes most memory: of sentences that are as long as allowed, and translations that are."""
    return max(_longest(config).values(), key=lambda slot: slot.rows * (slot.row.positions + slot.row.source))


def texts_of(corpus: Corpus, reads: str, lang_alpha: float) -> dict[str, tuple[int, float]]:
    """The training texts that slots of a kind are read from: each one's tokens, all eos included, and share of the slots.

    Args:
        corpus: Opened.
        reads: Windows, sentences or pairs.
        lang_alpha: Of languages' shares of windows; sentences and pairs of all languages have the same.
    """
    from xlm_train.data.order import language_shares

    if reads == "windows":
        streams = {lang: corpus.stream("train", lang) for lang in corpus.languages}
        shares = language_shares({lang: stream.n_sentences for lang, stream in streams.items()}, lang_alpha)
        return {lang: (stream.n_tokens, float(shares[lang])) for lang, stream in streams.items()}
    tables = _length_tables(corpus, reads)
    return {name: (int((table[:, 0] * table[:, -1]).sum()), 1 / len(tables)) for name, table in tables.items()}


def tokens_once(corpus: Corpus, reads: str, bptt: int) -> int:
    """Training tokens of one reading of a corpus, in whole windows, in sentences or in pairs.

    Args:
        corpus: Opened.
        reads: Windows, sentences or pairs.
        bptt: Tokens of a window.
    """
    if reads == "windows":
        return sum(corpus.stream("train", lang).n_windows(bptt) * bptt for lang in corpus.languages)
    return sum(size for size, _ in texts_of(corpus, reads, 0.0).values())


def _length_tables(corpus: Corpus, reads: str) -> dict[str, NDArray[np.int64]]:
    """How many sentences of each language, or pairs, have each length (data/sentences.py)."""
    names = corpus.pair_names("train") if reads == "pairs" else corpus.languages
    return {name: corpus.length_order("train", name).classes for name in names}


def _longest(config: Mapping[str, Any]) -> dict[str, SlotKind]:
    from xlm_train.objectives.back_translation import longest_translation

    found = {}
    for name, (kind, settings) in parts_of(config["objective"]).items():
        slot = _slot(config, kind, settings.get("mask_share"), config["data"]["max_len"] + 2)
        if slot.row.decodes:
            source = longest_translation(config["data"]["max_len"] + 2, config["model"]["max_positions"])
            slot = replace(slot, row=replace(slot.row, source=source))
        found[name] = slot
    return found


def _slot(config: Mapping[str, Any], kind: Any, mask_share: float | None, length: float) -> SlotKind:
    """A slot of sentences of this length, or of windows, which have their own."""
    from xlm_train.objectives.objective import row_of

    data, reads = config["data"], getattr(kind, "reads", "windows")
    if reads == "windows":
        row = row_of(kind, data["bptt"], mask_share)
        return SlotKind(kind, reads, 1.0, data["slot_streams"] * data["bptt"], row)
    of_row = data["tokens_per_slot"] // 2 if reads == "pairs" else data["tokens_per_slot"]
    return SlotKind(kind, reads, 1.0, data["tokens_per_slot"], row_of(kind, min(length, of_row), mask_share))


def _streams(kind: Any, settings: Mapping[str, Any], n_langs: int) -> int:
    """How many languages, pairs or directions an objective has."""
    for key in ("languages", "directions", "pairs"):
        if settings.get(key):
            return len(settings[key])
    alone = getattr(kind, "reads", "windows") != "pairs" and not getattr(kind, "decodes", False)
    return n_langs if alone else n_langs * (n_langs - 1)


def _mean_length(corpus: Corpus, reads: str, max_len: int) -> float:
    """Mean tokens of the training sentences that are read, both eos included; of pairs that of a side."""
    sides, tokens, count = (2 if reads == "pairs" else 1), 0, 0
    for table in _length_tables(corpus, reads).values():
        table = table[(table[:, 0] > 2 * sides) & (table[:, 0] <= sides * (max_len + 2))]
        tokens += int((table[:, 0] * table[:, -1]).sum())
        count += int(table[:, -1].sum())
    return tokens / sides / count if count else USUAL_LENGTH
