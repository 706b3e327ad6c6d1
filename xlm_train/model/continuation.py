"""Raw texts continued: the words of `decoding` as running text, as they come."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from xlm_train.model.decoding import Sampling, next_words
from xlm_train.runtime.console import show
from xlm_train.runtime.files import atomic_write
from xlm_train.text.reader import GrowingText
from xlm_train.text.vocabulary import EOS, NEVER_WRITTEN

if TYPE_CHECKING:
    from xlm_train.model.pretrained import TrainedModel


class Continuation:
    """A text that is continued.

    Args:
        trained: Whose ids the tokens are.
        prompt: As it was given.
        language: Its code.
        sample: Number among the samples of this prompt.
        stop: The text ends before the first of these strings.

    Attributes:
        ids: Of the prompt, behind the eos that begins every text.
        tokens: The new ids.
        logprobs: Of each of them, by the model alone, in nats.
        ended: It gets no more tokens.
        finished: It has ended itself, by an eos or a string of `stop`.
    """

    def __init__(
        self, trained: TrainedModel, prompt: str, language: str, sample: int = 0, stop: Sequence[str] = ()
    ) -> None:
        # the prompt's last line goes on, so it does not end in an eos
        self.ids = [EOS, *trained.text.encode(prompt.split("\n"), language).ids[:-1].tolist()]
        self.prompt, self.language, self.sample, self.stop = prompt, language, sample, stop
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.ended = self.finished = False
        self._vocabulary = trained.text.vocabulary
        self._new = GrowingText(trained.text, language, self.ids[1:])

    def add(self, token: int, logprob: float, stop_at_eos: bool) -> None:
        """Append a token; the text may end by it.

        Args:
            token: Its id.
            logprob: By the model alone, in nats.
            stop_at_eos: An eos ends the text; otherwise it ends a line of it. A string of `stop` always ends it.
        """
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if stop_at_eos and token == EOS:
            self.ended = self.finished = True
        else:
            self._new.add(token)
            if self.stop and self._find_stop() is not None:
                self.ended = self.finished = True

    def end(self) -> None:
        """Let no more tokens follow: what was held back is part of the text now."""
        self.ended = True
        self.finished = self.finished or self._find_stop() is not None

    def _find_stop(self) -> int | None:
        """Where the text ends before a stop string."""
        text = self._new.read(whole=self.ended)
        return min((place for one in self.stop if (place := text.find(one)) >= 0), default=None)

    @property
    def text(self) -> str:
        """The prompt as it was given, and its continuation, detokenised.

        Of a text that has not ended, as much as no further word changes: each is the beginning of the next.
        """
        new = self._new.read(whole=self.ended)[: self._find_stop()]
        if not self.ended:  # a stop string may have begun
            begun = (n for one in self.stop for n in range(1, len(one)) if new.endswith(one[:n]))
            new = new[: len(new) - max(begun, default=0)]
        return self.prompt.rstrip(" ") + new

    @property
    def pieces(self) -> list[str]:
        """The new tokens as the vocabulary spells them."""
        return [self._vocabulary.words[token] for token in self.tokens]

    def record(self, logprobs: bool) -> dict[str, Any]:
        """What is told of it in a file.

        Args:
            logprobs: Also each token's spelling and log-probability.
        """
        found = {name: getattr(self, name) for name in ("prompt", "language", "sample", "text", "tokens", "finished")}
        return {**found, "pieces": self.pieces, "logprobs": self.logprobs} if logprobs else found


def continue_by_words(
    trained: TrainedModel,
    prompts: Sequence[str],
    language: str,
    max_tokens: int = 100,
    sampling: Sampling | None = None,
    num_samples: int = 1,
    stop_at_eos: bool = True,
    batch_texts: int = 32,
    stop: Sequence[str] = (),
) -> Iterator[list[Continuation]]:
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
        stop: A text ends before the first of these strings.

    Yields:
        The texts begun so far, the same list each time, whenever those at work have got a word.

    Raises:
        ConfigError: The checkpoint does not know the language.
    """
    number = trained.text.language(language)
    jobs = [(prompt, sample) for prompt in prompts for sample in range(num_samples)]
    texts: list[Continuation] = []

    def batch_of(first: int) -> Iterator[None]:
        batch = [Continuation(trained, prompt, language, n, stop) for prompt, n in jobs[first : first + batch_texts]]
        texts.extend(batch)
        for words in next_words(
            trained.model,
            [text.ids for text in batch],
            number,
            max_tokens,
            trained.context,
            lambda row: batch[row].ended,
            sampling,
            [text.sample for text in batch],
            NEVER_WRITTEN,
        ):
            for row, token, logprob in words:
                batch[row].add(token, logprob, stop_at_eos)
                if len(batch[row].tokens) == max_tokens:
                    batch[row].end()
            yield

    for first in range(0, len(jobs), batch_texts):
        for _ in batch_of(first):
            yield texts


def continue_texts(
    trained: TrainedModel, prompts: Sequence[str], language: str, max_tokens: int = 100, **settings: Any
) -> list[Continuation]:
    """Continue raw texts to their ends; errors as of `continue_by_words`.

    Args:
        trained: The opened checkpoint.
        prompts: Raw text.
        language: Its code.
        max_tokens: New tokens of each text, at most.
        settings: The other arguments of `continue_by_words`.
    """
    last = deque(continue_by_words(trained, prompts, language, max_tokens, **settings), maxlen=1)
    return last[0] if last else []


def write_continuations(path: str, continuations: Sequence[Continuation], logprobs: bool = False) -> None:
    """Write one JSON object a line: see `Continuation.record`.

    Args:
        path: Of the file; it appears when it is whole.
        continuations: In the order of its lines.
        logprobs: Also each token's spelling and log-probability in nats.
    """
    with atomic_write(path) as file:
        for continuation in continuations:
            file.write(json.dumps(continuation.record(logprobs), ensure_ascii=False).encode() + b"\n")


class ContinuationPrinter:
    """Prints texts that grow, one after another: of the first that has not ended as much as is final.

    Args:
        logprobs: Behind each text, on standard error, the log-probabilities of its new tokens.
    """

    def __init__(self, logprobs: bool) -> None:
        self.logprobs = logprobs
        self._done = 0  # texts that are printed whole
        self._letters = 0  # of the next one

    def show(self, texts: Sequence[Continuation]) -> bool:
        """Print what is new. Returns False where nobody reads it any more."""
        for text in texts[self._done :]:
            now = text.text
            if not show(now[self._letters :], end="\n" if text.ended else ""):
                return False
            self._letters = len(now)
            if not text.ended:
                break
            if self.logprobs:
                each = "  ".join(
                    f"{piece} {value:.2f}" for piece, value in zip(text.pieces, text.logprobs, strict=True)
                )
                print(f"log-probabilities: {each}; in all {sum(text.logprobs):.2f}", file=sys.stderr, flush=True)
            self._done, self._letters = self._done + 1, 0
        return True
