"""Translating with a key-value cache: greedy, sampling and beam search, many sentences at once.

Keys and values of the source are computed once a layer, those of the target once a position. A sentence that has ended
leaves the batch; the beams of a sentence read one copy of its source. Every translation begins and ends with eos.

Source: greedy and beam search follow the original's rules (docs/differences.md says where), checked output by output.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xlm_train.model.cache import AlignedCache
from xlm_train.model.decoding import Sampling, choose, text_noise
from xlm_train.model.seq2seq import Seq2Seq, pad
from xlm_train.model.transformer import SourceKeys
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import EOS


@dataclass(frozen=True)
class Beam:
    """Beam search.

    Args:
        size: Translations followed at once, and closed ones kept.
        length_penalty: A closed translation's log-probability is divided by its length to this power: below 1 favours
            short ones, above 1 long ones.
        early_stopping: Stop when `size` are closed; otherwise when none that goes on can still be better.
    """

    size: int = 4
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"beam={self.size}: must be at least 1")


def translate(
    model: Seq2Seq,
    sources: Sequence[Sequence[int]],
    source_language: int | None,
    target_language: int | None,
    max_length: int | Sequence[int],
    search: Sampling | Beam | None = None,
) -> list[list[int]]:
    """Translate sentences, all of them together; the model's mode is left as it was.

    What a sentence gives does not depend on the others beside it, but for rounding.

    Args:
        model: In any mode.
        sources: Ids, eos first and last.
        source_language: The model's id of it.
        target_language: The model's id of it.
        max_length: Ids of a translation at most, both eos included; at least 2. One for all, or one a sentence.
        search: Default greedy. Sampling draws from its seed and the sentence itself.

    Returns:
        Ids of each translation, eos first and last.

    Raises:
        ConfigError: `max_length` is more than the model's positions, or less than 2.
    """
    limits = [max_length] * len(sources) if isinstance(max_length, int) else list(max_length)
    for limit in limits:
        if not 2 <= limit <= model.shape.max_positions:
            raise ConfigError(f"max_length={limit}: must be from 2 to {model.shape.max_positions}, the positions")
    search = Sampling() if search is None else search
    device = model.decoder.embeddings.weight.device
    with torch.inference_mode(), without_dropout(model), without_traces(device):
        tokens_BS, lengths_B = pad(sources)
        padded = bool((lengths_B < tokens_BS.shape[1]).any())
        lengths = lengths_B.to(device) if padded else None
        source = model.encode(tokens_BS.to(device), source_language, lengths)
        width = search.size if isinstance(search, Beam) else 1
        reader = _Reader(model, source, target_language, width, max(limits))
        if isinstance(search, Beam):
            return _search(reader, limits, search)
        return _go_on(reader, sources, limits, search)


@contextmanager
def without_traces(device: torch.device) -> Iterator[None]:
    """Empty autocast's cache afterwards: up to torch 2.10 it keeps casts that a training pass cannot use."""
    try:
        yield
    finally:
        if torch.is_autocast_enabled(device.type):
            torch.clear_autocast_cache()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards back into the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Reader:
    """The decoder with all that it has read: `width` rows for each source, a sentence's rows beside each other."""

    def __init__(
        self, model: Seq2Seq, source: list[SourceKeys], language: int | None, width: int, max_length: int
    ) -> None:
        self.decoder = model.decoder
        self.source = source
        self.language = language
        self.width = width
        rows = len(source[0].k_BHSE) * width
        self.cache = AlignedCache(model.shape, rows, max_length - 1, like=source[0].k_BHSE)

    def next_logits(self, words: Sequence[int]) -> Tensor:
        """Scores (rows, V) of what follows when each row reads one more word."""
        position = torch.tensor([[self.cache.length]], device=self.source[0].k_BHSE.device)
        tokens = torch.tensor(words, device=position.device)[:, None]
        hidden = self.decoder(tokens, self.language, positions_BT=position, cache=self.cache, source=self.source)
        self.cache.length += 1
        return self.decoder.logits(hidden[:, 0])

    def select(self, sentences: Sequence[int], rows: Sequence[int]) -> None:
        """Go on with these sentences only, whose rows were at `rows`."""
        if len(sentences) < len(self.source[0].k_BHSE):
            kept = torch.tensor(sentences, device=self.source[0].k_BHSE.device)
            self.source = [layer.select(kept) for layer in self.source]
        self.cache.select(rows)


def _go_on(
    reader: _Reader, sources: Sequence[Sequence[int]], limits: Sequence[int], sampling: Sampling
) -> list[list[int]]:
    """One word after the other. The last place is eos's, whatever would have come."""
    noise = [text_noise(sampling.seed, source, 0) for source in sources]
    texts = [[EOS] for _ in sources]
    active = list(range(len(sources)))
    while True:
        going = [
            place
            for place, row in enumerate(active)
            if len(texts[row]) < limits[row] - 1 and (len(texts[row]) == 1 or texts[row][-1] != EOS)
        ]
        if len(going) < len(active):
            active = [active[place] for place in going]
            if active:
                reader.select(going, going)
        if not active:
            return [text if len(text) > 1 and text[-1] == EOS else [*text, EOS] for text in texts]
        logits = reader.next_logits([texts[row][-1] for row in active])
        uniform = torch.tensor([noise[row].random() for row in active], dtype=torch.float64, device=logits.device)
        for row, word in zip(active, choose(logits, sampling, uniform).tolist(), strict=True):
            texts[row].append(word)


@dataclass
class _Sentence:
    """One sentence's search.

    Attributes:
        number: Among the sources.
        limit: Ids of its translation at most.
        texts: What its beams hold.
        closed: Heap of (score, minus the number of its closing, ids without the closing eos); the worst comes first.
    """

    number: int
    limit: int
    texts: list[list[int]]
    closed: list[tuple[float, int, list[int]]] = field(default_factory=list)
    n_closed: int = 0

    def close(self, text: list[int], log_probability: float, beam: Beam) -> None:
        """Keep a closed translation if it is among the best."""
        self.n_closed += 1
        entry = (log_probability / len(text) ** beam.length_penalty, -self.n_closed, text)
        if len(self.closed) < beam.size:
            heapq.heappush(self.closed, entry)
        else:
            heapq.heappushpop(self.closed, entry)

    def is_done(self, best: float, beam: Beam) -> bool:
        """Nothing that goes on can still be better, the best of it having the log-probability `best`."""
        if len(self.closed) < beam.size:
            return False
        return beam.early_stopping or self.closed[0][0] >= best / (self.limit - 1) ** beam.length_penalty

    def result(self) -> list[int]:
        """The best closed translation."""
        return [*max(self.closed)[2], EOS]


def _search(reader: _Reader, limits: Sequence[int], beam: Beam) -> list[list[int]]:
    """Follow the `size` most likely beginnings of each sentence."""
    k = beam.size
    sentences = [_Sentence(number, limit, [[EOS]] * k) for number, limit in enumerate(limits)]
    results: list[list[int]] = [[] for _ in sentences]
    scores = torch.zeros(len(sentences), k, device=reader.source[0].k_BHSE.device)
    scores[:, 1:] = -1e9  # at first all beams of a sentence are the same: only one may go on
    while sentences:
        logits = reader.next_logits([text[-1] for sentence in sentences for text in sentence.texts])
        values, beams, words = (found.tolist() for found in _best(logits, scores))
        going, rows, kept = [], [], []
        for place, sentence in enumerate(sentences):
            if sentence.is_done(values[place][0], beam):
                continue
            texts: list[list[int]] = []
            for value, origin, word in zip(values[place], beams[place], words[place], strict=True):
                if word == EOS or len(sentence.texts[origin]) + 1 == sentence.limit:
                    sentence.close(sentence.texts[origin], value, beam)
                else:
                    texts.append([*sentence.texts[origin], word])
                    rows.append(place * k + origin)
                    kept.append(value)
                if len(texts) == k:
                    break
            if texts:
                sentence.texts = texts
                going.append(place)
        for place in {*range(len(sentences))} - {*going}:
            results[sentences[place].number] = sentences[place].result()
        sentences = [sentences[place] for place in going]
        if sentences:
            scores = torch.tensor(kept, device=scores.device).view(-1, k)
            reader.select(going, rows)
    return results


def _best(logits_RV: Tensor, scores_Bk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 2k best continuations of each sentence's k beams: log-probabilities, beams and words, (B, 2k) each, falling."""
    B, k = scores_Bk.shape
    n = min(2 * k, logits_RV.shape[1])
    logits_RV = logits_RV.float()
    best, words = logits_RV.topk(n, dim=1)  # a sentence's 2k best are among its beams' 2k best
    best = best - logits_RV.logsumexp(dim=1, keepdim=True) + scores_Bk.view(-1, 1)
    values, places = best.view(B, k * n).topk(2 * k, dim=1)
    return values, places // n, words.view(B, k * n).gather(1, places)
