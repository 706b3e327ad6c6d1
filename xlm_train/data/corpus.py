"""A binarised corpus, opened by memory map.

Opening reads the manifest and maps the shards: cost and memory do not depend on the corpus. Reading a window touches
only its bytes. The folder is written by `data_prep`; what each file holds is in its manifest.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.manifest import FILE, FORMAT, VERSION
from xlm_train.runtime.errors import CorpusError
from xlm_train.runtime.files import read_json, sha256_of
from xlm_train.text.vocabulary import EOS


@dataclass(frozen=True)
class Shard:
    """One mapped file of token ids.

    Args:
        path: the file.
        tokens: its ids, 1-D, as the manifest's dtype, read from disk when they are looked at.
        start: number of its first token within the language's stream.
    """

    path: Path
    tokens: NDArray[Any]
    start: int


class TokenStream:
    """All tokens of one language in one split, as one stream over its shards, cut into windows.

    The original's windows for one stream, in training and in evaluation: the stream without its last token (always an
    eos, and never read) is padded on the left with eos, one at least, so that the first token has a context, to whole
    windows of `bptt` tokens; window w is tokens w*bptt .. (w+1)*bptt - 1 of that. A window predicts bptt - 1 tokens:
    its first is never a target.

    Args:
        language: its code.
        split: "train", "valid" or "test".
        shards: the mapped files, in the order of the stream.
        statistics: the manifest's entry: counts of sentences, tokens, words ...
    """

    def __init__(self, language: str, split: str, shards: list[Shard], statistics: Mapping[str, Any]) -> None:
        self.language = language
        self.split = split
        self.shards = shards
        self.statistics = statistics
        self.starts = [shard.start for shard in shards]
        self.n_tokens = shards[-1].start + len(shards[-1].tokens) if shards else 0

    @property
    def n_sentences(self) -> int:
        """Sentences of the stream."""
        return int(self.statistics["sentences"])

    def n_windows(self, bptt: int) -> int:
        """Count the windows of `bptt` tokens, the padded first one included."""
        return -(-self.n_tokens // bptt)

    def read(self, start: int, end: int) -> NDArray[np.int64]:
        """Read tokens start .. end-1 of the unpadded stream.

        Args:
            start: position of the first token; positions before 0 are eos.
            end: position after the last one, at most `n_tokens`.

        Returns:
            (end - start,) token ids.
        """
        out = np.empty(end - start, dtype=np.int64)
        self._read_into(out, start)
        return out

    def windows(self, numbers: NDArray[np.int64], bptt: int) -> NDArray[np.int64]:
        """Read windows by number.

        Args:
            numbers: (N,) window numbers, 0 .. n_windows(bptt) - 1.
            bptt: tokens of a window.

        Returns:
            (N, bptt) token ids.
        """
        offset = self.n_tokens - 1 - self.n_windows(bptt) * bptt  # minus the padding: <= -1
        out = np.empty((len(numbers), bptt), dtype=np.int64)
        for row, number in zip(out, numbers.tolist(), strict=True):
            self._read_into(row, offset + number * bptt)
        return out

    def _read_into(self, out: NDArray[np.int64], start: int) -> None:
        """Fill `out` with tokens start .. start + len(out) - 1."""
        end, position = start + len(out), max(start, 0)
        out[: position - start] = EOS
        number = bisect.bisect_right(self.starts, position) - 1
        while position < end:
            shard = self.shards[number]
            stop = min(end, shard.start + len(shard.tokens))
            out[position - start : stop - start] = shard.tokens[position - shard.start : stop - shard.start]
            position, number = stop, number + 1


class Corpus:
    """An opened corpus folder.

    `languages` holds code -> id in id order, `n_words` the vocabulary's entries, `lineage` the hash that identifies the
    text wherever the folder is.

    Args:
        path: The folder that xlm-prep or xlm-import wrote.

    Raises:
        CorpusError: The folder is missing, unfinished or of another format, or a file's size or type is not what the
            manifest says; each problem names its file.

    Example:
        >>> corpus = xlm_train.data.Corpus("corpus")
        >>> corpus.languages
        {'de': 0, 'en': 1}
        >>> stream = corpus.stream("train", "en")
        >>> stream.windows(np.arange(2), bptt=16).shape  # the first two windows of 16 tokens
        (2, 16)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise CorpusError(f"data.path={self.path}: there is no such folder; xlm-prep makes one")
        if not (self.path / FILE).is_file():
            raise CorpusError(
                f"data.path={self.path}: no {FILE} in it: not a binarised corpus, or xlm-prep has not finished"
            )
        self.manifest: dict[str, Any] = read_json(self.path / FILE)
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise CorpusError(f"{self.path / FILE}: is not the manifest of a binarised corpus")
        if self.manifest.get("version") != VERSION:
            raise CorpusError(
                f"{self.path / FILE}: format version {self.manifest.get('version')}, this program reads {VERSION}"
            )
        try:
            self.languages: dict[str, int] = dict(sorted(self.manifest["languages"].items(), key=lambda item: item[1]))
            self.n_words = int(self.manifest["vocabulary"]["entries"])
            self.lineage = str(self.manifest["lineage"])
            self._streams = self._open()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CorpusError(f"{self.path / FILE}: is damaged: {type(error).__name__}: {error}") from error

    def _open(self) -> dict[tuple[str, str], TokenStream]:
        problems: list[str] = []
        streams = {}
        for split, languages in self.manifest["splits"].items():
            for language, statistics in languages.items():
                shards, start = [], 0
                for entry in statistics["shards"]:
                    tokens = self._map(entry["file"], np.dtype(self.manifest["dtype"]), entry["tokens"], problems)
                    self._map(entry["index"], np.dtype(np.int64), entry["sentences"], problems)
                    if tokens is not None and len(tokens):
                        shards.append(Shard(self.path / entry["file"], tokens, start))
                        start += len(tokens)
                streams[split, language] = TokenStream(language, split, shards, statistics)
        for name in ("vocabulary", "codes"):
            file = self.path / self.manifest[name]["file"]
            if not file.is_file():
                problems.append(f"{file}: is missing")
            elif sha256_of(file) != self.manifest[name]["sha256"]:  # small files: always checked
                problems.append(f"{file}: is not the {name} this corpus was made with (its checksum differs)")
        if problems:
            raise CorpusError(problems)
        return streams

    def _map(self, name: str, dtype: np.dtype[Any], length: int, problems: list[str]) -> NDArray[Any] | None:
        file = self.path / name
        try:
            array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            problems.append(f"{file}: is missing")
        except (ValueError, OSError, EOFError) as error:
            problems.append(f"{file}: is truncated or not a .npy file ({error})")
        else:
            if array.ndim == 1 and array.dtype == dtype and len(array) == length:
                return array.view(np.ndarray)  # still mapped; np.memmap does a dozen things more at every slice
            problems.append(
                f"{file}: holds {array.shape} {array.dtype}, the manifest says ({length},) {dtype}: a file of another corpus?"
            )
        return None

    @property
    def vocab_path(self) -> Path:
        """The vocabulary's file."""
        return self.path / self.manifest["vocabulary"]["file"]

    @property
    def codes_path(self) -> Path:
        """The file of BPE merges."""
        return self.path / self.manifest["codes"]["file"]

    @property
    def text(self) -> dict[str, Any]:
        """What is needed to read new text as this corpus was read: languages, vocabulary, codes, tokenisation."""
        return {
            "languages": self.languages,
            "vocab": self.vocab_path.read_bytes().decode(),
            "codes": self.codes_path.read_bytes().decode(),
            **self.manifest["text"],
        }

    def stream(self, split: str, language: str) -> TokenStream:
        """Return the stream of one language in one split.

        Raises:
            CorpusError: the corpus has no such split or language, or the stream is empty.
        """
        found = self._streams.get((split, language))
        if found is None or found.n_tokens == 0:
            have = ", ".join(f"{s}.{lang}" for (s, lang), stream in self._streams.items() if stream.n_tokens)
            raise CorpusError(f"{self.path}: has no text for {split}.{language}; it has {have}")
        return found

    def has(self, split: str, language: str) -> bool:
        """Whether the corpus has text of this language in this split."""
        stream = self._streams.get((split, language))
        return stream is not None and stream.n_tokens > 0

    def verify(self) -> None:
        """Compare every shard with its checksum, and its ids with the vocabulary; reads all bytes.

        Raises:
            CorpusError: with all differences.
        """
        problems = []
        for (split, language), stream in self._streams.items():
            for entry in self.manifest["splits"][split][language]["shards"]:
                for file, checksum in ((entry["file"], entry["sha256"]), (entry["index"], entry["index_sha256"])):
                    if sha256_of(self.path / file) != checksum:
                        problems.append(
                            f"{self.path / file}: its checksum differs from the manifest's: damaged or replaced"
                        )
            for shard in stream.shards:
                if int(shard.tokens.max()) >= self.n_words:
                    problems.append(f"{shard.path}: has token ids beyond the vocabulary's {self.n_words} entries")
        if problems:
            raise CorpusError(problems)
