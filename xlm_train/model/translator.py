"""Raw text to raw text with a trained translation model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlm_train.model.decoding import Sampling
from xlm_train.model.pretrained import TrainedModel, trained_model
from xlm_train.model.seq2seq import Seq2Seq, is_seq2seq
from xlm_train.model.shape import ModelShape
from xlm_train.model.translation import Beam, translate
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.device import resolve_device
from xlm_train.runtime.errors import ConfigError
from xlm_train.runtime.run_store import local_checkpoint
from xlm_train.text.reader import TextReader
from xlm_train.text.vocabulary import EOS

MAX_WORDS = 100  # ids of a sentence at most, eos not counted, as in training; longer lines are translated in pieces
SENTENCE_ENDS = (".", "!", "?", ";", ":")  # a long line is cut behind the last of these where there is one


@dataclass(frozen=True)
class Translator:
    """What `open_translator` returns.

    Args:
        path: Of the checkpoint file.
        sha256: Of its content.
        step: At which it was saved.
        lineage: Corpus and checkpoints that it comes from.
        model: In evaluation mode, on `device`.
        text: Raw text to the model's ids and back.
        device: Where the model is.
    """

    path: Path
    sha256: str
    step: int
    lineage: dict[str, Any]
    model: Seq2Seq
    text: TextReader
    device: torch.device

    def translate(
        self,
        lines: Sequence[str],
        source: str,
        target: str,
        search: Sampling | Beam | None = None,
        batch_tokens: int = 4000,
    ) -> list[str]:
        """Translate lines of raw text, each into one line.

        An empty line stays empty. A line of more than 100 pieces is cut, behind a sentence if it can be, and what its
        parts give is joined by spaces.

        Args:
            lines: Without their line ends.
            source: Code of their language.
            target: Code of the translations' language.
            search: Default greedy.
            batch_tokens: Of the source, translated together at most (a longer sentence comes alone).

        Returns:
            Detokenised text, as many lines.

        Raises:
            ConfigError: The checkpoint does not know a language.
            CheckpointError: It has no codes.
        """
        source_id, target_id = self.text.language(source, f"src={source}"), self.text.language(target, f"tgt={target}")
        encoded = self.text.encode(lines, source)
        longest = min(MAX_WORDS, self.model.shape.max_positions - 2)
        parts: list[tuple[int, list[int]]] = []  # number of the line, ids with both eos
        for number, ids in enumerate(np.split(encoded.ids, encoded.starts)[1:]):
            parts += [(number, [EOS, *part, EOS]) for part in self._parts(ids[:-1].tolist(), longest)]
        found: list[list[int]] = [[] for _ in parts]
        for batch in _batches([len(part) for _, part in parts], batch_tokens):
            sources = [parts[place][1] for place in batch]
            # the original's limit in evaluation, but for each sentence by itself
            limits = [min(int(1.5 * len(ids) + 10), self.model.shape.max_positions) for ids in sources]
            texts = translate(self.model, sources, source_id, target_id, limits, search)
            for place, text in zip(batch, texts, strict=True):
                found[place] = text[1:-1]
        translations: list[list[str]] = [[] for _ in lines]
        for (number, _), words in zip(parts, found, strict=True):
            translations[number].append(self.text.decode(words, target))
        return [" ".join(pieces) for pieces in translations]

    def _parts(self, words: list[int], longest: int) -> Iterator[list[int]]:
        """Pieces of a line, each short enough; borders behind a sentence, else between words, else anywhere."""
        spelled = self.text.vocabulary.words
        while len(words) > longest:
            places = range(longest, longest // 2, -1)
            behind = [n for n in places if spelled[words[n - 1]] in SENTENCE_ENDS]
            between = [n for n in places if not spelled[words[n - 1]].endswith("@@")]
            border = [*behind, *between, longest][0]
            yield words[:border]
            words = words[border:]
        if words:
            yield words


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places of sentences of like length, the shortest first."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * lengths[place] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def open_translator(path: str | Path, device: str = "auto") -> Translator:
    """Read a translation model's checkpoint.

    Args:
        path: A file that xlm-train or xlm-import wrote, or a run; or the URL of either.
        device: auto, cpu or cuda; auto takes a GPU where there is one.

    Raises:
        UserError: The file is missing, damaged or no translation model, or the device is not there.
    """
    place = resolve_device(device)
    content = checkpoint_file.load(path := local_checkpoint(path))
    if not is_seq2seq(content["model"]):
        raise ConfigError(f"{path}: is a language model, where a translation model is needed")
    return _translator(Path(path), content, place)


def open_either(path: str | Path, device: str = "auto", bptt: int | None = None) -> TrainedModel | Translator:
    """Read the checkpoint of a language model or of a translation model.

    Args:
        path: A file that xlm-train or xlm-import wrote.
        device: auto, cpu or cuda; auto takes a GPU where there is one.
        bptt: Window length in tokens; see `open_checkpoint`.

    Raises:
        UserError: The file is missing, damaged or no checkpoint, the device is not there, or the model does not read
            windows of `bptt` tokens.
    """
    place = resolve_device(device)
    content = checkpoint_file.load(path)
    if not is_seq2seq(content["model"]):
        return trained_model(Path(path), content, place, bptt)
    if bptt is not None:
        raise ConfigError(f"bptt={bptt}: {path} is a translation model, which reads sentences and no windows")
    return _translator(Path(path), content, place)


def _translator(path: Path, content: dict[str, Any], device: torch.device) -> Translator:
    with torch.device("meta"):  # no random weights drawn only to be replaced
        model = Seq2Seq(ModelShape(**content["shape"]))
    model.load_state_dict(content["model"], assign=True)
    return Translator(
        path=path,
        sha256=content["sha256"],
        step=content["progress"]["step"],
        lineage=content["lineage"],
        model=model.eval().to(device),
        text=TextReader(content["text"], name=str(path)),
        device=device,
    )
