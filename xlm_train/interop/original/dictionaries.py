"""The original's dictionary (ids, words and counts in three dicts) and our Vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xlm_train.interop.original.plain import is_text
from xlm_train.runtime.errors import CheckpointError, UserError
from xlm_train.text.vocabulary import SPECIALS, Vocabulary


def to_vocabulary(id2word: Any, word2id: Any, counts: Any, path: Path) -> Vocabulary:
    """The original's three dicts as one vocabulary. Raises CheckpointError where they do not agree."""
    if not all(isinstance(part, dict) for part in (id2word, word2id, counts)):
        raise CheckpointError(f"{path}: its dictionary is damaged")
    words = [id2word.get(number) for number in range(len(id2word))]
    if (
        not all(isinstance(word, str) and is_text(word) for word in words)
        or {word: number for number, word in enumerate(words)} != word2id
        or counts.keys() != word2id.keys()
        or not all(isinstance(count, int) for count in counts.values())
    ):
        raise CheckpointError(f"{path}: its dictionary is damaged: ids, words and counts do not belong together")
    if tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise CheckpointError(f"{path}: its dictionary does not begin with the {len(SPECIALS)} special words")
    vocabulary = Vocabulary((word, counts[word]) for word in words[len(SPECIALS) :])
    try:
        again = Vocabulary.from_text(vocabulary.to_text(), name=f"{path}: dictionary")
    except UserError as error:
        raise CheckpointError(error.problems) from error
    if again.words != vocabulary.words:
        raise CheckpointError(
            f"{path}: its dictionary has words with white space in them, which no vocabulary file can hold"
        )
    return vocabulary


def from_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """id2word, word2id and counts, as the original's Dictionary and its checkpoints hold them."""
    return {
        "id2word": dict(enumerate(vocabulary.words)),
        "word2id": {word: number for number, word in enumerate(vocabulary.words)},
        "counts": dict(zip(vocabulary.words, vocabulary.counts, strict=True)),
    }
