"""Choosing the next words of texts, with a key-value cache, several texts at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from xlm_train.model.transformer import XLM


@dataclass(frozen=True)
class Sampling:
    """How the next word is chosen.

    Args:
        temperature: 0 takes the most likely word (greedy); otherwise the scores are divided by it before the softmax.
        top_k: Only the k most likely words (0: all).
        top_p: Only the most likely words that together reach this probability, after temperature and top_k.
        seed: The same seed, prompt and sample number give the same text.

    Source: for top_p, Holtzman et al. 2020.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def problems(self) -> list[str]:
        """What is wrong with these values, naming the override that fixes it."""
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature={self.temperature}: must be 0 (greedy) or positive")
        if self.top_k < 0:
            problems.append(f"top_k={self.top_k}: must be 0 (all words) or positive")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            problems.append(
                "top_k and top_p choose among samples, temperature=0 is greedy: set temperature=1 to sample"
            )
        if self.seed < 0:
            problems.append(f"seed={self.seed}: must not be negative")
        return problems


def window_start(length: int, context: int) -> int:
    """First position of a text of `length` tokens that the model reads to predict the next one.

    0 while the text fits in `context` tokens. After that the window moves on by half a context at a time, so it always
    holds at least half of one, and what the cache holds stays valid between the moves.
    """
    hop = max(1, context // 2)
    return 0 if length <= context else -(-(length - context) // hop) * hop


class CachedTexts:
    """Next-word scores for texts that grow a token at a time, each token read once.

    Args:
        model: In evaluation mode.
        language: Its id of the texts' language.
        n_texts: Texts, which may differ in length.
        context: The most tokens read to predict one (see `window_start`).
        longest: The most tokens that any text will have.
    """

    def __init__(self, model: XLM, language: int, n_texts: int, context: int, longest: int) -> None:
        from xlm_train.model.cache import KeyValueCache

        self.model = model
        self.language = language
        self.context = context
        self.device = model.embeddings.weight.device
        self.cache = KeyValueCache(model.shape, n_texts, min(context, longest), like=model.embeddings.weight)
        self.starts = [-1] * n_texts  # first position of each text that the cache holds; -1: holds nothing

    def next_logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Scores (len(texts), V) of the word after each text; the texts are those of the last call, a token longer."""
        import torch

        starts = [window_start(len(text), self.context) for text in texts]
        moved = [row for row, (old, new) in enumerate(zip(self.starts, starts, strict=True)) if old != new]
        if moved:
            self._read(moved, [texts[row][starts[row] : -1] for row in moved])
        self.starts = starts
        last = torch.tensor([[text[-1]] for text in texts], device=self.device)
        positions = torch.tensor(
            [[len(text) - 1 - start] for text, start in zip(texts, starts, strict=True)], device=self.device
        )
        hidden = self.model(last, langs=self.language, positions_BT=positions, cache=self.cache)
        return self.model.logits(hidden[:, 0])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these texts only."""
        self.cache.layers = [layer[:, rows] for layer in self.cache.layers]
        self.starts = [self.starts[row] for row in rows]

    def _read(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        """Fill the cache rows again with texts, which stand at positions 0 and on."""
        import torch

        from xlm_train.model.cache import KeyValueCache

        longest = max(len(text) for text in texts)
        if not longest:
            return
        tokens = torch.zeros(len(texts), longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
        # Slots after a shorter text's end are filled too; each is written again before a query may see it.
        positions = torch.arange(longest, device=self.device).expand(len(texts), longest)
        fresh = KeyValueCache(self.model.shape, len(texts), self.cache.capacity, like=self.cache.layers[0])
        self.model(tokens.to(self.device), langs=self.language, positions_BT=positions, cache=fresh)
        for layer, new in zip(self.cache.layers, fresh.layers, strict=True):
            layer[:, rows] = new


class Word(NamedTuple):
    """A word that was chosen.

    Args:
        row: Number of its text.
        token: Its id.
        logprob: Natural logarithm of its probability as the model has it, whatever the sampling makes of that.
    """

    row: int
    token: int
    logprob: float


def next_words(
    model: XLM,
    prompts: Sequence[Sequence[int]],
    language: int,
    max_tokens: int,
    context: int,
    has_ended: Callable[[int], bool],
    sampling: Sampling | None = None,
    sample_numbers: Sequence[int] | None = None,
    banned: Sequence[int] = (),
) -> Iterator[list[Word]]:
    """Continue prompts, all of them together, a word at a time.

    What a prompt gives does not depend on the others beside it, but for rounding.

    Args:
        model: It is set to evaluation mode.
        prompts: Token ids, at least one each; a text begins with eos, as in training.
        language: The model's id of it.
        max_tokens: New tokens of each prompt, at most.
        context: Tokens read at most to predict one.
        has_ended: Tells, after each word, whether the text of a row gets no more.
        sampling: Default greedy.
        sample_numbers: One a prompt: tells several samples of one prompt apart.
        banned: Ids that are never chosen.

    Yields:
        The next word of each text that goes on.
    """
    import torch

    sampling = Sampling() if sampling is None else sampling
    numbers = [0] * len(prompts) if sample_numbers is None else sample_numbers
    noise = [text_noise(sampling.seed, prompt, number) for prompt, number in zip(prompts, numbers, strict=True)]
    texts = [list(prompt) for prompt in prompts]
    active = list(range(len(prompts)))
    model.eval()
    reader = CachedTexts(model, language, len(prompts), context, max(len(text) for text in texts) + max_tokens)
    for count in range(1, max_tokens + 1):
        with torch.inference_mode():  # not while the caller has a word
            logits = reader.next_logits([texts[row] for row in active]).float()
            totals = logits.logsumexp(dim=1)
            logits[:, list(banned)] = float("-inf")
            uniform = torch.tensor([noise[row].random() for row in active], dtype=torch.float64, device=logits.device)
            chosen = choose(logits, sampling, uniform)
            logprobs = logits.gather(1, chosen[:, None])[:, 0] - totals
        words = [Word(*word) for word in zip(active, chosen.tolist(), logprobs.tolist(), strict=True)]
        for row, token, _ in words:
            texts[row].append(token)
        yield words
        going = [place for place, row in enumerate(active) if not has_ended(row)]
        if not going or count == max_tokens:
            return
        if len(going) < len(active):
            reader.keep(going)
            active = [active[place] for place in going]


def choose(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> Tensor:
    """The next word of each row (B,).

    Args:
        logits_BV: Scores of all words.
        sampling: Greedy, or by inverting the cumulative distribution.
        uniform_B: Where it is inverted, in [0, 1).
    """
    import torch

    if sampling.temperature == 0:
        return logits_BV.argmax(dim=1)
    scores = logits_BV.double() / sampling.temperature
    ids = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    if sampling.top_k:
        scores, ids = scores.topk(min(sampling.top_k, scores.shape[1]), dim=1)
    probabilities = scores.softmax(dim=1)
    if sampling.top_p < 1:
        probabilities, most_likely = _reaching(probabilities, sampling.top_p)
        ids = ids.gather(1, most_likely)
        before = probabilities.cumsum(dim=1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    reached = probabilities.cumsum(dim=1)
    place = torch.searchsorted(reached, uniform_B[:, None] * reached[:, -1:], right=True)
    return ids.gather(1, place.clamp(max=ids.shape[1] - 1))[:, 0]


def _reaching(probabilities_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The highest probabilities of each row, falling, and their places: as many as reach top_p in every row.

    A nucleus rarely has more than some hundred words; sorting the whole vocabulary costs more than the model.
    """
    n_words = probabilities_BV.shape[1]
    k = min(256, n_words)
    while True:
        highest, places = probabilities_BV.topk(k, dim=1)
        if k == n_words or bool((highest.sum(dim=1) >= top_p).all()):
            return highest, places
        k = min(4 * k, n_words)


def text_noise(seed: int, prompt: Sequence[int], sample: int) -> np.random.Generator:
    """Random numbers of one text: they depend on the prompt itself, not on its place in a file or a batch.

    Args:
        seed: Of all texts (`Sampling.seed`).
        prompt: Its token ids.
        sample: Number among the samples of this prompt.
    """
    digest = hashlib.blake2b(np.asarray(prompt, dtype="<i8").tobytes(), digest_size=16).digest()
    return np.random.default_rng([seed, sample, int.from_bytes(digest, "little")])
