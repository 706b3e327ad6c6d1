"""Continuing a text word by word, with a key-value cache, several texts at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from xlm_train.runtime.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from xlm_train.model.pretrained import TrainedModel
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


@dataclass(frozen=True)
class Continuation:
    """One continued text.

    Args:
        prompt: As it was given.
        language: Its code.
        sample: Number among the samples of this prompt.
        text: The prompt as it was given, and its continuation, detokenised.
        tokens: The new ids.
        finished: It ended itself, with an eos.
    """

    prompt: str
    language: str
    sample: int
    text: str
    tokens: list[int]
    finished: bool


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


def generate(
    model: XLM,
    prompts: Sequence[Sequence[int]],
    language: int,
    max_tokens: int,
    context: int,
    sampling: Sampling | None = None,
    sample_numbers: Sequence[int] | None = None,
    stop_at_eos: bool = True,
    banned: Sequence[int] = (),
) -> list[list[int]]:
    """Continue prompts, all of them together.

    What a prompt gives does not depend on the others beside it, but for rounding.

    Args:
        model: It is set to evaluation mode.
        prompts: Token ids, at least one each; a text begins with eos, as in training.
        language: The model's id of it.
        max_tokens: New tokens of each prompt, at most.
        context: Tokens read at most to predict one.
        sampling: Default greedy.
        sample_numbers: One a prompt: tells several samples of one prompt apart.
        stop_at_eos: A text ends with the first eos (which is returned too).
        banned: Ids that are never chosen.

    Returns:
        The new tokens of each prompt.
    """
    import torch

    from xlm_train.text.vocabulary import EOS

    sampling = Sampling() if sampling is None else sampling
    numbers = [0] * len(prompts) if sample_numbers is None else sample_numbers
    noise = [text_noise(sampling.seed, prompt, number) for prompt, number in zip(prompts, numbers, strict=True)]
    texts = [list(prompt) for prompt in prompts]
    active = list(range(len(prompts)))
    with torch.inference_mode():
        model.eval()
        reader = CachedTexts(model, language, len(prompts), context, max(len(text) for text in texts) + max_tokens)
        for count in range(1, max_tokens + 1):
            logits = reader.next_logits([texts[row] for row in active])
            logits[:, banned] = float("-inf")
            uniform = torch.tensor([noise[row].random() for row in active], dtype=torch.float64, device=logits.device)
            for row, token in zip(active, choose(logits, sampling, uniform).tolist(), strict=True):
                texts[row].append(token)
            going = [place for place, row in enumerate(active) if not (stop_at_eos and texts[row][-1] == EOS)]
            if not going or count == max_tokens:
                break
            if len(going) < len(active):
                reader.keep(going)
                active = [active[place] for place in going]
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


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
    """Random numbers of one text: they depend on the prompt itself, not on its place in a file or a batch."""
    digest = hashlib.blake2b(np.asarray(prompt, dtype="<i8").tobytes(), digest_size=16).digest()
    return np.random.default_rng([seed, sample, int.from_bytes(digest, "little")])


def continue_texts(
    trained: TrainedModel,
    prompts: Sequence[str],
    language: str,
    max_tokens: int = 100,
    sampling: Sampling | None = None,
    num_samples: int = 1,
    stop_at_eos: bool = True,
    batch_texts: int = 32,
) -> Iterator[Continuation]:
    """Continue raw texts, in their order.

    A prompt is tokenised and cut like the training text; a newline in it ends a sentence (an eos), so a prompt that
    ends in one asks for the next sentence. Special words other than eos are never generated.

    Args:
        trained: The opened checkpoint.
        prompts: Raw text.
        language: Its code.
        max_tokens: New tokens of each text, at most.
        sampling: Default greedy.
        num_samples: Continuations of each prompt.
        stop_at_eos: A text ends with the first eos.
        batch_texts: Texts that are continued together.

    Raises:
        ConfigError: The checkpoint does not know the language.
    """
    from xlm_train.text.vocabulary import EOS, SPECIALS

    number = trained.text.language(language)
    banned = [i for i in range(len(SPECIALS)) if i != EOS]
    jobs = []
    for prompt in prompts:
        # a text begins with eos; the last line goes on, so it does not end in one
        ids = [EOS, *trained.text.encode(prompt.split("\n"), language).ids[:-1].tolist()]
        jobs += [(prompt, ids, sample) for sample in range(num_samples)]
    for start in range(0, len(jobs), batch_texts):
        batch = jobs[start : start + batch_texts]
        new = generate(
            trained.model,
            [ids for _, ids, _ in batch],
            number,
            max_tokens,
            trained.context,
            sampling,
            [sample for _, _, sample in batch],
            stop_at_eos,
            banned,
        )
        for (prompt, ids, sample), tokens in zip(batch, new, strict=True):
            finished = stop_at_eos and tokens[-1] == EOS
            text = trained.text.decode(ids[1:] + (tokens[:-1] if finished else tokens), language)
            if text.startswith(known := trained.text.decode(ids[1:], language)):
                text = prompt.rstrip(" ") + text[len(known) :]  # the prompt as it was given
            yield Continuation(prompt, language, sample, text, tokens, finished)


def write_continuations(path: str, continuations: Sequence[Continuation]) -> None:
    """One JSON object a line: prompt, language, sample, text, tokens, finished."""
    with atomic_write(path) as file:
        for continuation in continuations:
            file.write(json.dumps(asdict(continuation), ensure_ascii=False).encode() + b"\n")
