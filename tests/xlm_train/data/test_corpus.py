"""A corpus folder: windows, and what is refused at opening."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xlm_train.data.corpus import Corpus
from xlm_train.runtime.errors import CorpusError
from xlm_train.text.vocabulary import EOS


@pytest.fixture
def folder(corpus_folder: Path, tmp_path: Path) -> Path:
    """A corpus of one's own, to damage."""
    return Path(shutil.copytree(corpus_folder, tmp_path / "bin"))


def test_windows_cover_the_stream_once(corpus_folder: Path) -> None:
    corpus = Corpus(corpus_folder)
    stream = corpus.stream("train", "en")
    raw = np.concatenate(
        [np.load(corpus_folder / e["file"]) for e in corpus.manifest["splits"]["train"]["en"]["shards"]]
    )
    for bptt in (7, 32, 256):
        windows = stream.windows(np.arange(stream.n_windows(bptt)), bptt).reshape(-1)
        padding = len(windows) - stream.n_windows(bptt) * bptt
        assert padding == 0
        first = int(np.argmax(windows != EOS))
        # eos on the left, then the corpus in order; the original's rule drops tokens at the very end at most
        kept = windows[first:]
        start = int(np.argmax(raw != EOS))
        assert np.array_equal(kept, raw[start : start + len(kept)])
        assert len(raw) - start - len(kept) <= 1
        assert (windows[:first] == EOS).all()
        assert 1 <= first <= bptt + start


def test_shards_are_one_stream(corpus_folder: Path, tmp_path: Path) -> None:
    whole = Corpus(corpus_folder)
    shutil.copytree(corpus_folder, tmp_path / "bin")
    manifest = json.loads((tmp_path / "bin/manifest.json").read_text())
    entry = manifest["splits"]["train"]["de"]["shards"][0]
    tokens = np.load(tmp_path / "bin" / entry["file"])
    starts = np.load(tmp_path / "bin" / entry["index"])
    shards, previous = [], 0
    for number, end in enumerate((5, 1000, len(starts))):
        stop = int(starts[end]) if end < len(starts) else len(tokens)
        name = f"train.de.{number + 10:05}"
        np.save(tmp_path / f"bin/{name}.npy", tokens[int(starts[previous]) : stop])
        np.save(tmp_path / f"bin/{name}.idx.npy", starts[previous:end] - starts[previous])
        shards.append(
            {
                **entry,
                "file": f"{name}.npy",
                "index": f"{name}.idx.npy",
                "tokens": stop - int(starts[previous]),
                "sentences": end - previous,
            }
        )
        previous = end
    manifest["splits"]["train"]["de"]["shards"] = shards
    for shard in shards:  # checksums of the new files
        for key in [k for k in shard if k.endswith("probe")]:
            del shard[key]
    (tmp_path / "bin/manifest.json").write_text(json.dumps(manifest))
    parts = Corpus(tmp_path / "bin").stream("train", "de")
    one = whole.stream("train", "de")
    numbers = np.arange(one.n_windows(64))
    assert np.array_equal(parts.windows(numbers, 64), one.windows(numbers, 64))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def of_another_corpus(path: Path) -> None:
    np.save(path, np.arange(10, dtype=np.float32))


@pytest.mark.parametrize("damage", [truncate, empty, remove, of_another_corpus])
@pytest.mark.parametrize("name", ["train.en.00000.npy", "valid.de.00000.idx.npy"])
def test_damaged_files_are_refused_by_name(folder: Path, damage: Callable[[Path], None], name: str) -> None:
    damage(folder / name)
    with pytest.raises(CorpusError, match=name):
        Corpus(folder)


def test_a_damaged_header_is_told_in_one_line(folder: Path) -> None:
    path = folder / "train.en.00000.npy"
    data = bytearray(path.read_bytes())
    data[9] ^= 0x40  # the header's length
    path.write_bytes(data)
    with pytest.raises(CorpusError) as error:
        Corpus(folder)
    assert len(error.value.problems) == 1
    assert "\n" not in str(error.value)


def test_a_vocabulary_of_another_corpus_is_refused(folder: Path) -> None:
    (folder / "vocab").write_text("the 5\n")
    with pytest.raises(CorpusError, match="vocab: is not the vocabulary this corpus was made with"):
        Corpus(folder)


def test_all_damage_is_reported_together(folder: Path) -> None:
    remove(folder / "train.en.00000.npy")
    remove(folder / "codes")
    truncate(folder / "test.de.00000.npy")
    with pytest.raises(CorpusError) as error:
        Corpus(folder)
    assert len(error.value.problems) == 3


def test_flipped_bytes_are_found_by_verify(folder: Path) -> None:
    path = folder / "train.en.00000.npy"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"train\.en\.00000\.npy: its checksum"):
        Corpus(folder).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "not finished"),
        (lambda f: (f / "manifest.json").write_text('{"format": "x"}'), "not the manifest"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "manifest.json").write_text('{"format": "xlm_train.corpus", "version": 99}'), "version 99"),
        (lambda f: (f / "manifest.json").write_text('{"format": "xlm_train.corpus", "version": 1}'), "damaged"),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
)
def test_unfinished_and_foreign_folders_are_refused(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(Exception, match=message):
        Corpus(folder)


def test_missing_split_says_what_there_is(corpus_folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"no text for train\.fr; it has .*train\.de"):
        Corpus(corpus_folder).stream("train", "fr")
