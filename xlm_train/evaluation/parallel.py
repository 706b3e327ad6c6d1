"""How well a translation model does on the pairs of a corpus, as the original scores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.data.corpus import Corpus
from xlm_train.evaluation.bleu import baselines, detokenised_baselines
from xlm_train.evaluation.pairs import BATCH_PAIRS, by_length
from xlm_train.evaluation.perplexity import predict
from xlm_train.model.seq2seq import Seq2Seq, pad, predictions
from xlm_train.model.translation import Beam, translate, without_dropout
from xlm_train.text.reader import TextReader
from xlm_train.text.vocabulary import EOS, SPECIALS, UNK

UNMATCHED = f"<{SPECIALS[UNK]}>"  # an unknown word of a reference, as the original writes it: no translation has it
UNREADABLE = "\u2047"  # the same in running text, where sacrebleu would part the brackets from the word


class ParallelText:
    """Pairs of one split, to be translated from one language into the other.

    Pairs with an empty side are left out, as in the original, and those with a side beyond the model's positions.

    Args:
        corpus: Opened.
        split: "train", "valid" or "test".
        direction: Codes of the source's and the target's language.
        reader: Of the model's text: vocabulary, language ids.
        longest: Tokens of a side, both eos included, that the model has positions for.
        batch_pairs: Pairs of a batch, at most. A batch's longest source limits all its translations.

    Attributes:
        name: Of the direction, as "de-en".
        batches: Of each the numbers of its pairs, by length, in the original's order.
        numbers: (n,) of all of them, in the corpus's order.
        n_pieces: Of all their sources, both eos included: the work that translating them is.
        n_pairs: Of the split, those left out too.
        too_long: Pairs that were left out for their length.

    Raises:
        CorpusError: The corpus has no such pairs; says how they are prepared.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        direction: tuple[str, str],
        reader: TextReader,
        longest: int,
        batch_pairs: int = BATCH_PAIRS,
    ) -> None:
        self.direction = direction
        self.name = "-".join(direction)
        self.languages = reader.languages[direction[0]], reader.languages[direction[1]]
        self._reader = reader
        pairs = corpus.pairs(split, "-".join(sorted(direction)))
        self._sides = pairs.sides[:: 1 if pairs.languages == direction else -1]
        self.n_pairs = pairs.n
        lengths = np.stack([side.lengths(np.arange(pairs.n)) for side in self._sides], axis=1)
        full, fitting = lengths.min(axis=1) > 2, lengths.max(axis=1) <= longest
        self.batches = by_length(lengths, full & fitting, batch_pairs)
        self.numbers = np.flatnonzero(full & fitting)
        self.n_pieces = int(lengths[self.numbers, 0].sum())
        self.too_long = int((full & ~fitting).sum())

    def read(self, numbers: NDArray[np.int64]) -> tuple[list[list[int]], list[list[int]]]:
        """Read the sources and the targets of pairs (N,), with both eos."""
        sources, targets = ([[EOS, *ids.tolist(), EOS] for ids in side.read(numbers)] for side in self._sides)
        return sources, targets

    def words(self, ids: Sequence[int]) -> str:
        """Write out the pieces of a sentence, between whose both eos they stand."""
        return " ".join(self._reader.vocabulary.words[piece] for piece in ids[1:-1])

    def running_text(self, ids: Sequence[int], side: int) -> str:
        """Write out a sentence (with both eos) of the source (0) or the target (1) for people: detokenised."""
        return self._reader.decode(ids[1:-1], self.direction[side])

    @cached_property
    def _all(self) -> tuple[list[list[int]], list[list[int]]]:
        """The sources and the targets, in the corpus's order."""
        return self.read(self.numbers)

    @cached_property
    def references(self) -> list[str]:
        """The targets in pieces, in the corpus's order; their unknown words match nothing."""
        spelled = {UNK: UNMATCHED}
        words = self._reader.vocabulary.words
        return [" ".join(spelled.get(piece, words[piece]) for piece in ids[1:-1]) for ids in self._all[1]]

    @cached_property
    def plain_sources(self) -> list[str]:
        """The sources as running text, in the corpus's order."""
        return [self.running_text(ids, 0) for ids in self._all[0]]

    @cached_property
    def plain_references(self) -> list[str]:
        """The targets as running text, in the corpus's order; their unknown words match nothing."""
        return [self.running_text(ids, 1).replace(SPECIALS[UNK], UNREADABLE) for ids in self._all[1]]

    @cached_property
    def baselines(self) -> dict[str, float]:
        """BLEU of the best constant sentence (`constant`) and of the source as it is (`copied`)."""
        return baselines([self.words(ids) for ids in self._all[0]], self.references)

    @cached_property
    def chrf_baselines(self) -> dict[str, float]:
        """The chrF of the same two, of running text."""
        return detokenised_baselines(self.plain_sources, self.plain_references)["chrf"]


@torch.no_grad()
def translate_pairs(
    model: Seq2Seq,
    text: ParallelText,
    search: Beam | None = None,
    share: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
    tell: Callable[[int, int], None] = lambda pieces, pairs: None,
) -> tuple[Tensor, dict[int, list[int]]]:
    """Predict the targets' words, each from those before it; and translate the sources.

    A translation has at most int(1.5 x longest source of its batch + 10) ids, both eos included. Batches do not depend on
    the number of processes, so neither do the translations.

    Args:
        model: Its dropout is off meanwhile.
        text: The pairs.
        search: Default greedy.
        share: (r, n): batches r, r + n, r + 2 n ... are done here.
        device: Where the model is.
        tell: Called with the pieces of the sources, both eos included, and the pairs done since its last call.

    Returns:
        A (3,) float64 tensor of cross-entropy in nats, correct predictions and predicted tokens, which processes merge by
        adding; and by the number of the pair its translation's ids, eos first and last.

    Source: the original's evaluation/evaluator.py.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    translations: dict[int, list[int]] = {}
    with without_dropout(model):
        for batch in text.batches[share[0] :: share[1]]:
            sources, targets = text.read(batch)
            sums += _forced_sums(model, sources, targets, text.languages, device)
            limit = min(int(1.5 * max(map(len, sources)) + 10), model.shape.max_positions)
            made = translate(model, sources, *text.languages, limit, search)
            translations |= zip(batch.tolist(), made, strict=True)
            tell(sum(map(len, sources)), len(batch))
    return sums, translations


def _forced_sums(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    languages: tuple[int, int],
    device: torch.device | str,
) -> Tensor:
    source_BS, source_lengths_B = pad(sources)
    target_BT, target_lengths_B = pad(targets)
    chosen_N = predictions(target_lengths_B)
    wanted_N = target_BT[:, 1:].flatten()[chosen_N].to(device)
    source = model.encode(source_BS.to(device), languages[0], source_lengths_B.to(device))
    hidden = model.decoder(target_BT[:, :-1].to(device), languages[1], source=source).flatten(0, 1)
    losses, correct = predict(model.decoder, hidden.index_select(0, chosen_N.to(device)), wanted_N)
    return torch.stack([losses.double().sum(), correct.sum().double(), losses.new_tensor(len(losses)).double()])
