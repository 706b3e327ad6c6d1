"""A checkpoint opened for use: the model ready to predict, and the reader of new text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlm_train.model.seq2seq import is_seq2seq
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.device import resolve_device
from xlm_train.runtime.errors import CheckpointError, ConfigError, TextError
from xlm_train.runtime.run_store import local_checkpoint
from xlm_train.text.reader import TextReader
from xlm_train.text.vocabulary import EOS, read_text


@dataclass(frozen=True)
class TrainedModel:
    """What `open_checkpoint` returns.

    Args:
        path: Of the checkpoint file.
        sha256: Of its content.
        step: At which it was saved.
        lineage: Corpus and checkpoints that it comes from.
        model: In evaluation mode, on `device`.
        text: Raw text to the model's ids and back.
        bptt: Window length in tokens, as in training.
        device: Where the model is.
        evaluation: How it is scored, which its objective said: "causal" continues texts, "masked" fills gaps.
        objective: Class name of the objective; empty where it was not trained here.
    """

    path: Path
    sha256: str
    step: int
    lineage: dict[str, Any]
    model: XLM
    text: TextReader
    bptt: int
    device: torch.device
    evaluation: str = "causal"
    objective: str = ""

    def require_causal(self, wish: str) -> None:
        """Refuse what only a causal model can do.

        Raises:
            CheckpointError: The model was trained otherwise.
        """
        if self.evaluation != "causal":
            raise CheckpointError(
                f"{self.path}: {wish} needs a causal model; this one was trained to fill gaps and reads both sides"
                f" ({self.objective or 'imported'}, evaluation {self.evaluation}): train with objective=clm for that"
            )

    @property
    def context(self) -> int:
        """Tokens the model reads at most to predict one: as many as in training.

        Only positions 0 .. bptt-2 ever were predicted from (the last token of a window predicts nothing), so the later
        rows of the position table still hold what they were initialised with.
        """
        return self.bptt - 1

    def logits(self, line: str, language: str) -> Tensor:
        """Scores of all words at each place of a line of raw text.

        Args:
            line: Without its line end.
            language: Its code.

        Returns:
            (T, V), where T counts the line's tokens and the eos that ends it; row p scores what follows the first p of
            them.

        Raises:
            ConfigError: The checkpoint does not know the language.
            TextError: The line has more than `context` tokens.
        """
        return self._logits(self._ids(line, language), language)

    def score(self, line: str, language: str) -> float:
        """Natural logarithm of the probability of a line of raw text, its end included; arguments as `logits`."""
        ids = self._ids(line, language)
        return float(self._logits(ids, language).log_softmax(dim=1).gather(1, ids[:, None]).sum())

    def _ids(self, line: str, language: str) -> Tensor:
        self.text.language(language)
        ids = torch.from_numpy(self.text.encode([line], language).ids.astype(np.int64)).to(self.device)
        if len(ids) > self.context:
            raise TextError(
                f"the line has {len(ids):,} tokens, {self.path} reads {self.context:,} at most: shorten it"
                f" (xlm-eval text.{language}=FILE scores longer lines in pieces)"
            )
        return ids

    @torch.no_grad()
    def _logits(self, ids: Tensor, language: str) -> Tensor:
        self.require_causal("scoring a line")
        read = torch.cat([ids.new_tensor([EOS]), ids[:-1]])
        return self.model.logits(self.model(read[None], langs=self.text.language(language))[0])


def open_checkpoint(path: str | Path, device: str = "auto", bptt: int | None = None) -> TrainedModel:
    """Read a checkpoint into a model in evaluation mode.

    Args:
        path: A file that xlm-train or xlm-import wrote.
        device: auto, cpu or cuda; auto takes a GPU where there is one.
        bptt: Window length in tokens; default what the checkpoint's config says, or all positions where it says nothing
            (a file imported from elsewhere).

    Raises:
        UserError: The file is missing, damaged or not a checkpoint, the device is not there, or the model has fewer
            positions than bptt.

    Example:
        >>> trained = xlm_train.load_pretrained("model.pt", device="cpu")
        >>> trained.logits("The king was dead.", "en").shape  # 5 tokens and the line's end, 6,142 words
        torch.Size([6, 6142])
        >>> trained.score("The king was dead.", "en") < 0
        True
    """
    place = resolve_device(device)
    content = checkpoint_file.load(path := local_checkpoint(path))
    if is_seq2seq(content["model"]):
        raise ConfigError(f"{path}: is a translation model, where a language model is needed")
    return trained_model(Path(path), content, place, bptt)


def trained_model(path: Path, content: dict[str, Any], device: torch.device, bptt: int | None) -> TrainedModel:
    """Make what `open_checkpoint` returns of a checkpoint's content.

    Args:
        path: Of the file that it was read from.
        content: Of a language model, as `checkpoint_file.load` gives it; on a CPU the model takes its tensors over.
        device: Where the model goes.
        bptt: Window length in tokens; None: as in `open_checkpoint`.

    Raises:
        ConfigError: The window is shorter than 2 tokens, or longer than the model has positions.
    """
    with torch.device("meta"):  # no random weights drawn only to be replaced
        model = XLM(ModelShape(**content["shape"]))
    model.load_state_dict(content["model"], assign=True)
    longest = model.shape.max_positions
    if bptt is None:
        bptt = min(longest, (content["config"].get("data") or {}).get("bptt", longest))
    elif not 2 <= bptt <= longest:
        raise ConfigError(f"bptt={bptt}: must be from 2 to {longest}, the model's positions")
    return TrainedModel(
        path=path,
        sha256=content["sha256"],
        step=content["progress"]["step"],
        lineage=content["lineage"],
        model=model.eval().to(device),
        text=TextReader(content["text"], name=str(path)),
        bptt=bptt,
        device=device,
        evaluation=content.get("evaluation", "causal"),
        objective=str((content["config"].get("objective") or {}).get("_target_", "")).rpartition(".")[2],
    )


load_pretrained = open_checkpoint  # its name in the public API: xlm_train.load_pretrained


def prepare_text(
    text: str | Sequence[str],
    language: str,
    checkpoint: str | Path | TrainedModel | None = None,
    *,
    codes: str | Path | None = None,
    vocab: str | Path | None = None,
    lowercase: bool = False,
    remove_accents: bool = False,
) -> list[NDArray[np.int64]]:
    """Raw text to ids: tokenised, cut by BPE, looked up in the vocabulary.

    Args:
        text: Lines without their ends, or a string whose newlines end them.
        language: Their code, such as `en`.
        checkpoint: Prepares the text as the model's training text was.
        codes: Instead of a checkpoint, a BPE codes file ...
        vocab: ... and its vocabulary file.
        lowercase: With codes and vocab, lower-case the text.
        remove_accents: With codes and vocab, strip its accents.

    Returns:
        Ids of each line, its eos included; `<unk>` (3) where the vocabulary lacks a piece.

    Raises:
        UserError: A file cannot be read, the checkpoint does not know the language or holds no codes, or neither a
            checkpoint nor codes and vocab are given.

    Example:
        >>> xlm_train.prepare_text("The king was dead.", "en", codes="codes", vocab="vocab")
        [array([  31,  695,   24, 3248,   14,    1])]
    """
    if (checkpoint is None, codes is None, vocab is None) not in ((False, True, True), (True, False, False)):
        raise ConfigError("prepare_text: give a checkpoint, or codes=FILE and vocab=FILE")
    if isinstance(checkpoint, TrainedModel):
        reader = checkpoint.text
    elif checkpoint is not None:
        reader = TextReader(checkpoint_file.load(local_checkpoint(checkpoint))["text"], name=str(checkpoint))
    else:
        files = {"codes": read_text(str(codes)), "vocab": read_text(str(vocab))}
        options = {"lowercase": lowercase, "remove_accents": remove_accents}
        reader = TextReader({"languages": {language: 0}, **files, **options}, name=f"{codes}, {vocab}")
    reader.language(language)
    encoded = reader.encode(text.split("\n") if isinstance(text, str) else text, language)
    return np.split(encoded.ids.astype(np.int64), encoded.starts)[1:]
