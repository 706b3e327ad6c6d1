"""Raw text to a model's ids and ids back to text, by what a checkpoint knows of its text preparation."""

from __future__ import annotations

import functools
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlm_train.runtime.errors import CheckpointError, ConfigError, TextError
from xlm_train.text.bpe import BpeEncoder, EncodedLines, decode
from xlm_train.text.bpe_codes import CONTINUED, BpeCodes
from xlm_train.text.detokenise import DETOKENISED, spaced
from xlm_train.text.files import ReadStats, TextFile
from xlm_train.text.lines import DroppedLines, cut
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import EOS, Vocabulary

BLOCK_BYTES = 1 << 20
STANDARD_INPUT = ("-", "/dev/stdin")


class TextReader:
    """Prepares text as the training text was: tokenised, cut by BPE (without a vocabulary limit), turned into ids.

    Args:
        text: A checkpoint's `text` part.
        name: Of the checkpoint, for messages.

    Raises:
        UserError: The vocabulary is damaged.
    """

    def __init__(self, text: Mapping[str, Any], name: str = "the checkpoint") -> None:
        self.name = name
        self.languages: dict[str, int] = dict(sorted(text["languages"].items(), key=lambda item: item[1]))
        self.vocabulary = Vocabulary.from_text(text["vocab"], name=f"{name}: vocabulary")
        self._text = text

    @functools.cached_property
    def _encoder(self) -> BpeEncoder:
        if not self._text["codes"]:
            raise CheckpointError(
                f"{self.name}: holds no BPE codes, so it cannot read raw text: import it with codes=FILE"
            )
        return BpeEncoder(BpeCodes.from_text(self._text["codes"], name=f"{self.name}: codes"))

    def language(self, code: str, override: str | None = None) -> int:
        """Id of a language.

        Args:
            code: Of the language, as `en`.
            override: What named it, for messages; `lang=code` if not given.

        Raises:
            ConfigError: The checkpoint does not know the language; names those that it does.
        """
        if code not in self.languages:
            named = f"lang={code}" if override is None else override
            raise ConfigError(f"{named}: {self.name} knows the languages {', '.join(self.languages)}")
        return self.languages[code]

    def encode(self, lines: Sequence[str], language: str) -> EncodedLines:
        """Lines of raw text as ids; eos ends every line.

        Args:
            lines: Without their line ends.
            language: Their code.
        """
        tokeniser = Tokeniser(language, lowercase=self._text["lowercase"], remove_accents=self._text["remove_accents"])
        return self._encoder.encode_ids(tokeniser.tokenise(lines), self.vocabulary)

    def decode(self, ids: Sequence[int], language: str) -> str:
        """Text of ids: pieces joined, words detokenised, a newline at every eos.

        By our own rules for German and English, by sacremoses' for other languages.
        """
        text = GrowingText(self, language)
        for token in ids:
            text.add(token)
        return text.read(whole=True)


class GrowingText:
    """Text of ids that come one by one: pieces joined, words detokenised, a newline at every eos.

    Args:
        reader: Whose ids they are.
        language: Their code.
        ids: Those that stand before; they are not shown.
    """

    def __init__(self, reader: TextReader, language: str, ids: Sequence[int] = ()) -> None:
        self._words = reader.vocabulary.words
        self._language = language
        self._sentences = ""  # those that have ended
        self._pieces: list[str] = []  # of the sentence that has not
        self._hidden = 0  # its words that stood before
        for token in ids:
            self.add(token)
        self._sentences, self._hidden = "", len(self._parted(whole=True))

    def add(self, token: int) -> None:
        """Append an id."""
        if token == EOS:
            self._sentences += f"{self._sentence(whole=True)}\n"
            self._pieces, self._hidden = [], 0
        else:
            self._pieces.append(self._words[token])

    def read(self, whole: bool) -> str:
        """The text as it is now; or, where it is not the whole, as much of it as no further id changes.

        That is whole sentences where sacremoses joins the words, whose rules look ahead.
        """
        return self._sentences + self._sentence(whole)

    def _parted(self, whole: bool) -> list[str]:
        """Words of the sentence that has not ended, without one that may go on."""
        words = decode(" ".join(self._pieces)).split(" ") if self._pieces else []
        return words[:-1] if words and not whole and self._pieces[-1].endswith(CONTINUED) else words

    def _sentence(self, whole: bool) -> str:
        words = self._parted(whole)
        if self._language in DETOKENISED:
            return "".join(spaced(words, whole)[self._hidden :])
        if not whole or not words:
            return ""
        join = _joiner(self._language)
        return join(words)[len(join(words[: self._hidden])) if self._hidden else 0 :]


@functools.cache
def _joiner(language: str) -> Callable[[list[str]], str]:
    """Sacremoses' rules of a language."""
    from sacremoses import MosesDetokenizer

    return functools.partial(MosesDetokenizer(lang=language).detokenize, unescape=False)


def file_problems(path: str | Path) -> list[str]:
    """What is wrong with a text file, as far as its beginning tells."""
    if str(path) in STANDARD_INPUT:
        return []
    try:
        is_folder = stat.S_ISDIR(Path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return [f"{path}: there is no such file"]
    except OSError as error:
        return [f"{path}: cannot be read: {error.strerror}"]
    return [f"{path}: is a folder; give a text file"] if is_folder else TextFile(Path(path)).check()


def raw_lines(path: str | Path) -> Iterator[bytes]:
    """Lines of a text file, plain or compressed, without their ends, whether they are text or not.

    Raises:
        TextError: The file cannot be read.
    """
    for piece in cut(TextFile(Path(path)).chunks(ReadStats()), BLOCK_BYTES, sys.maxsize, DroppedLines()):
        yield from piece.data.removesuffix(b"\n").split(b"\n")


def as_text(lines: Iterable[bytes], first: int) -> Iterator[str]:
    """Lines as text; what is not UTF-8 in them is replaced, with a warning that counts lines from `first`."""
    for number, line in enumerate(lines, start=first):
        try:
            yield line.decode()
        except UnicodeDecodeError:
            print(f"warning: line {number}: is not UTF-8; what cannot be read is replaced", file=sys.stderr)
            yield line.decode(errors="replace")


def read_lines(path: str | Path) -> Iterator[list[str]]:
    """Lines of a text file, plain or compressed, in blocks of about a megabyte; of standard input all at once.

    No line is left out, so a result's line number is the file's.

    Raises:
        TextError: The file cannot be read or is not UTF-8; names the file and the line.
    """
    if problems := file_problems(path):
        raise TextError(problems)
    if str(path) in STANDARD_INPUT:
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise TextError(f"{path}: is not UTF-8") from error
        if not text:
            raise TextError(f"{path}: is empty")
        yield text.removesuffix("\n").split("\n")
        return
    for piece in cut(TextFile(Path(path)).chunks(ReadStats()), BLOCK_BYTES, sys.maxsize, DroppedLines()):
        try:
            yield piece.data.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise TextError(f"{path}:{piece.locate(error.start)[0]}: is not UTF-8") from error
