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

from xlm_train.data.manifest import FILE, FORMAT, VERSION, entries, fetched, files_of, languages_of, length_orders
from xlm_train.data.sentence_files import LengthOrder, Pairs, Sentences, is_length_order_of
from xlm_train.runtime.errors import CorpusError
from xlm_train.runtime.files import read_json, sha256_of
from xlm_train.runtime.storage import is_url
from xlm_train.text.vocabulary import EOS


@dataclass(frozen=True)
class Shard:
    """One mapped file of token ids.

    Args:
        tokens: its ids, 1-D, as the manifest's dtype, read from disk when they are looked at.
        start: number of its first token within the language's stream.
    """

    tokens: NDArray[Any]
    start: int


class TokenStream:
    """All tokens of one language in one split, as one stream over its shards, cut into windows.

    The original's windows for one stream, in training and in evaluation: the stream without its last token (always an
    eos, and never read) is padded on the left with eos, one at least, so that the first token has a context, to whole
    windows of `bptt` tokens; window w is tokens w*bptt .. (w+1)*bptt - 1 of that. A window predicts bptt - 1 tokens:
    its first is never a target.

    Args:
        shards: the mapped files, in the order of the stream.
        statistics: the manifest's entry: counts of sentences, tokens, words ...
    """

    def __init__(self, shards: list[Shard], statistics: Mapping[str, Any]) -> None:
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
        self.path = fetched(str(path)) if is_url(path) else Path(path)
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
            self._open()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CorpusError(f"{self.path / FILE}: is damaged: {type(error).__name__}: {error}") from error

    def _open(self) -> None:
        """Map all files: cost and memory do not depend on their sizes."""
        problems: list[str] = []
        self._streams: dict[tuple[str, str], TokenStream] = {}
        self._sentences: dict[str, Sentences] = {}
        self._pairs: dict[tuple[str, str], Pairs] = {}
        self._orders: dict[str, LengthOrder] = {}
        shards: dict[str, list[Shard]] = {}
        for name, entry in entries(self.manifest):
            shards[name], mapped, start = [], [], 0
            for shard in entry["shards"]:
                tokens = self._map(shard["file"], np.dtype(self.manifest["dtype"]), (shard["tokens"],), problems)
                starts = self._map(shard["index"], np.dtype(np.int64), (shard["sentences"],), problems)
                if tokens is not None and starts is not None and len(tokens):
                    shards[name].append(Shard(tokens, start))
                    mapped.append((tokens, starts))
                    start += len(tokens)
            self._sentences[name] = Sentences(mapped)
        for split, languages in self.manifest["splits"].items():
            for language, statistics in languages.items():
                stream = TokenStream(shards[f"{split}.{language}"], statistics)
                self._streams[split, language] = stream
        for split, pairs in self.manifest.get("pairs", {}).items():
            for name, pair in pairs.items():
                first, second = sorted(pair["sides"])
                sides = (self._sentences[f"{split}.{name}.{first}"], self._sentences[f"{split}.{name}.{second}"])
                self._pairs[split, name] = Pairs((first, second), sides)
                if not problems and sides[0].n != sides[1].n:
                    problems.append(
                        f"{self.path / FILE}: {split}.{name} is not aligned: {sides[0].n:,} sentences of {first}, "
                        f"{sides[1].n:,} of {second}"
                    )
        for name, entry in length_orders(self.manifest):
            columns = 3 if tuple(name.split(".", 1)) in self._pairs else 2
            text = self._ordered(name)
            dtype = np.dtype(np.uint32 if text.n < 1 << 32 else np.int64)
            numbers = self._map(entry["file"], dtype, (text.n,), [] if problems else problems)
            classes = self._map(entry["classes"], np.dtype(np.int64), (entry["n_classes"], columns), problems)
            if numbers is not None and classes is not None:
                self._orders[name] = LengthOrder(numbers, classes)
        for name in ("vocabulary", "codes"):
            file = self.path / self.manifest[name]["file"]
            if not file.is_file():
                problems.append(f"{file}: is missing")
            elif sha256_of(file) != self.manifest[name]["sha256"]:  # small files: always checked
                problems.append(f"{file}: is not the {name} this corpus was made with (its checksum differs)")
        if problems:
            raise CorpusError(problems)

    def _map(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], problems: list[str]) -> NDArray[Any] | None:
        file = self.path / name
        try:
            array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            problems.append(f"{file}: is missing")
        except (ValueError, OSError, EOFError) as error:
            why = str(error).partition("\n")[0]  # numpy goes on about its own settings
            problems.append(f"{file}: is truncated or not a .npy file ({why})")
        else:
            if array.dtype == dtype and array.shape == shape:
                return array.view(np.ndarray)  # still mapped; np.memmap does a dozen things more at every slice
            problems.append(
                f"{file}: holds {array.shape} {array.dtype}, the manifest says {shape} {dtype}: a file of another corpus?"
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
            texts = [f"{s}.{lang}" for (s, lang), stream in self._streams.items() if stream.n_tokens]
            have = ", ".join([*texts, *(f"the pairs {s}.{pair}" for s, pair in self._pairs)])
            raise CorpusError(f"{self.path}: has no text for {split}.{language}; it has {have}")
        return found

    def has(self, split: str, language: str) -> bool:
        """Whether the corpus has text of this language in this split."""
        stream = self._streams.get((split, language))
        return stream is not None and stream.n_tokens > 0

    def sentences(self, split: str, language: str) -> Sentences:
        """Return the sentences of one language in one split, by number.

        Raises:
            CorpusError: the corpus has no such text.
        """
        self.stream(split, language)
        return self._sentences[f"{split}.{language}"]

    def pairs(self, split: str, name: str) -> Pairs:
        """Return the pairs of two languages in one split, by number.

        Args:
            split: "train", "valid" or "test".
            name: both languages in alphabetical order, as "de-en".

        Raises:
            CorpusError: the corpus has no such pairs; says how they are prepared.
        """
        found = self._pairs.get((split, name))
        if found is None:
            have = ", ".join(f"{s}.{pair}" for s, pair in self._pairs) or "none"
            raise CorpusError(
                f"{self.path}: has no parallel text {split}.{name} (it has {have}); prepare it with it: xlm-prep ... "
                f"'pairs.{name}.{split}=[{','.join(f'FILE.{code}' for code in languages_of(name) or ('1', '2'))}]'"
            )
        return found

    def pair_names(self, split: str) -> list[str]:
        """The names of all pairs in one split, as "de-en"."""
        return [name for found, name in self._pairs if found == split]

    def length_order(self, split: str, name: str) -> LengthOrder:
        """Return the order by length of a text's sentences or pairs.

        Args:
            split: "train", "valid" or "test".
            name: a language or a pair, as "de" or "de-en".

        Raises:
            CorpusError: the corpus was made before there were such files, or has no such text.
        """
        found = self._orders.get(f"{split}.{name}")
        if found is None:
            self.stream(split, name) if name in self.languages else self.pairs(split, name)
            raise CorpusError(
                f"{self.path}: does not list its sentences by length, as batches of sentences need: it was made by an "
                "earlier version; run the same xlm-prep again (or xlm-import into a new folder)"
            )
        return found

    def _ordered(self, name: str) -> Sentences | Pairs:
        """What a length order is of."""
        split, _, text = name.partition(".")
        return self._pairs.get((split, text)) or self._sentences[name]

    def verify(self) -> None:
        """Compare every file with its checksum, ids with the vocabulary, length orders with the text; reads all bytes.

        Raises:
            CorpusError: with all differences.
        """
        damaged = {name for name, known in files_of(self.manifest).items() if sha256_of(self.path / name) != known}
        problems = [
            f"{self.path / name}: its checksum differs from the manifest's: damaged or replaced"
            for name in sorted(damaged)
        ]
        for _, entry in entries(self.manifest):
            for shard in entry["shards"]:
                tokens = np.load(self.path / shard["file"], mmap_mode="r")
                if len(tokens) and int(tokens.max()) >= self.n_words:
                    problems.append(
                        f"{self.path / shard['file']}: has token ids beyond the vocabulary's {self.n_words} entries"
                    )
        for name, order in self._orders.items():
            entry = dict(length_orders(self.manifest))[name]
            if damaged.isdisjoint((entry["file"], entry["classes"])) and not is_length_order_of(
                order, self._ordered(name)
            ):
                problems.append(f"{self.path / entry['file']}: does not list the sentences of {name} by their lengths")
        if problems:
            raise CorpusError(problems)
