"""Sources: every kind of input gives the same lines; what is wrong with one is said by name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources import sources_of
from data_prep.sources.jsonl import whole_lines
from xlm_train.runtime.errors import TextError
from xlm_train.text.files import ReadStats, TextFile
from xlm_train.text.lines import DroppedLines, Piece, cut

TEXT = "Ein Satz.\nDer zweite — mit Ümlauten.\n\nThe last line\n".encode()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def pieces_of(
    data: bytes, chunk: int = 7, piece_bytes: int = 10, max_line_bytes: int = 1 << 20
) -> tuple[list[Piece], DroppedLines]:
    dropped = DroppedLines()
    chunks = (data[start : start + chunk] for start in range(0, len(data), chunk))
    return list(cut(chunks, piece_bytes, max_line_bytes, dropped)), dropped


def read(value: object, language: str = "en") -> bytes:
    sources, problems = sources_of("train.en", value, language)
    assert problems == []
    return b"".join(chunk for source in sources for chunk in source.chunks(ReadStats()))


def problems_of(value: object, language: str = "en") -> list[str]:
    return sources_of("train.en", value, language)[1]


# ---- cutting


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=40),
    st.booleans(),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 30),
    st.integers(1, 15),
)
def test_pieces_do_not_depend_on_how_bytes_arrive(
    lines: list[bytes], ended: bool, chunk: int, other_chunk: int, piece_bytes: int, max_line_bytes: int
) -> None:
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    pieces, dropped = pieces_of(data, chunk, piece_bytes, max_line_bytes)
    assert (pieces, dropped) == pieces_of(data, other_chunk, piece_bytes, max_line_bytes)

    text = data[3:] if data.startswith(b"\xef\xbb\xbf") else data
    expected = text.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    kept = [line for line in expected if len(line) <= max_line_bytes]
    assert b"".join(piece.data for piece in pieces) == b"".join(line + b"\n" for line in kept)
    assert dropped.long_lines == len(expected) - len(kept)
    assert all(len(piece.data) >= piece_bytes for piece in pieces[:-1])


@given(st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=30), st.integers(1, 8))
def test_a_place_in_a_piece_is_found_again_in_the_input(lines: list[bytes], max_line_bytes: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    bom = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    for piece in pieces_of(data, 5, 12, max_line_bytes)[0]:
        for position in range(len(piece.data)):
            line, offset = piece.locate(position)
            assert data[offset] == piece.data[position]
            assert data.count(b"\n", bom, offset) + 1 == line


def test_only_a_newline_ends_a_line() -> None:
    text = "a\u2028b\u0085c\u2029d\x0be\x0cf\x1cg\rh\r\nsecond\n".encode()
    (piece,), _ = pieces_of(text, piece_bytes=1000)
    assert piece.data == text
    assert piece.data.count(b"\n") == 2


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    (piece,), dropped = pieces_of(b"\xef\xbb\xbffirst\n\xef\xbb\xbfsecond\n", chunk=1, piece_bytes=1000)
    assert piece.data == b"first\n\xef\xbb\xbfsecond\n"
    assert (dropped.bom, piece.offset) == (1, 3)


def test_a_line_of_200_mb_takes_no_memory() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"before\n"
        block = b"x" * (1 << 20)
        for _ in range(200):
            yield block
        yield b"\nafter\n"

    dropped = DroppedLines()
    tracemalloc.start()
    pieces = list(cut(chunks(), 1 << 22, 1 << 20, dropped))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [piece.data for piece in pieces] == [b"before\nafter\n"]
    assert pieces[0].gaps == ((7, 1, 200 * (1 << 20) + 1),)
    assert (dropped.long_lines, dropped.first_long_line) == (1, 2)
    assert peak < 8 << 20


# ---- files


@pytest.mark.parametrize("suffix", ["", ".txt", *COMPRESSIONS])
def test_files_give_the_same_text_whatever_their_form(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(COMPRESSIONS.get(suffix, bytes)(TEXT))
    stats = ReadStats()
    assert b"".join(TextFile(path).chunks(stats)) == TEXT
    assert stats.done == path.stat().st_size


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_members_in_a_row_are_all_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](TEXT) * 3)
    assert read(str(path)) == TEXT * 3


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("behind", [b"no such data", b"\0\0\0\0no such data"])
def test_what_is_no_member_behind_the_others_is_refused(tmp_path: Path, suffix: str, behind: bytes) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](TEXT) + behind)
    with pytest.raises(TextError, match=rf"text{suffix}: is damaged"):
        list(TextFile(path).chunks(ReadStats()))


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_damaged_later_member_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    member = COMPRESSIONS[suffix](TEXT)
    path.write_bytes(member + b"\xff" + member[1:] + member)
    with pytest.raises(TextError, match=rf"text{suffix}: is damaged"):
        list(TextFile(path).chunks(ReadStats()))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_zeros_between_and_behind_members_are_padding(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes((COMPRESSIONS[suffix](TEXT) + bytes(8)) * 2)
    assert read(str(path)) == TEXT * 2


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_dense_files_take_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](bytes(200 << 20)))
    tracemalloc.start()
    lengths = [len(chunk) for chunk in TextFile(path).chunks(ReadStats())]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(lengths) == 200 << 20
    assert peak < 100 << 20


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    whole = COMPRESSIONS[suffix](os.urandom(300_000))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TextError, match=rf"text{suffix}: is truncated"):
        list(TextFile(path).chunks(ReadStats()))


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    whole = bytearray(COMPRESSIONS[suffix](b"".join(b"line %d\n" % number for number in range(50_000))))
    whole[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    path.write_bytes(whole)
    with pytest.raises(TextError, match=rf"text{suffix}: is (damaged|truncated)"):
        list(TextFile(path).chunks(ReadStats()))


@pytest.mark.parametrize("change", ["shrink", "grow"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a line\n" * 1_000_000)
    chunks = TextFile(path).chunks(ReadStats())
    next(chunks)
    with open(path, "r+b" if change == "shrink" else "ab") as file:
        if change == "shrink":
            file.truncate(2_000_000)
        else:
            file.write(b"more\n")
    with pytest.raises(TextError, match=r"text\.txt: changed while it was read"):
        list(chunks)


def test_everything_wrong_is_found_together(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "nothing.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "plain.gz").write_bytes(TEXT)
    (tmp_path / "packed.txt").write_bytes(gzip.compress(TEXT))
    (tmp_path / "wide.txt").write_bytes(TEXT.decode().encode("utf-16"))
    (tmp_path / "wide_without_mark.txt").write_bytes("a plain sentence".encode("utf-16-le"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "garbage.txt").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(TEXT)
    os.mkfifo(tmp_path / "pipe")
    names = ["missing.txt", "empty.txt", "nothing.gz", "plain.gz", "packed.txt", "wide.txt", "wide_without_mark.txt"]
    names += ["garbage.txt", "texts", "folder", "pipe", "*.none"]
    given = [*(str(tmp_path / name) for name in names), "~no-such-user/x.txt"]
    problems = "\n".join(problems_of(given))
    for expected in (
        "missing.txt: there is no such file",
        "~no-such-user/x.txt: there is no such file",
        "empty.txt: is empty",
        "nothing.gz: holds no text",
        "plain.gz: is named .gz but is not such a file",
        "packed.txt: is compressed; rename it to end in .gz",
        "wide.txt: is UTF-16, not UTF-8 text",
        "wide_without_mark.txt: is full of NUL bytes",
        "folder: is a folder with no text known here",
        "garbage.txt: is binary, not UTF-8 text",
        f"texts: is a folder; its text files are '{tmp_path / 'texts'}/*.txt'",
        "pipe: is not a regular file",
        "*.none: no file has such a name",
    ):
        assert expected in problems
    assert problems.count("\n") == len(given) - 1
    assert all(problem.startswith("train.en: ") for problem in problems.split("\n"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_field_of_json_lines_is_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": 1, "text": "Ein Haus.\n\nZwei.", "other": "x"}, {"id": 2, "text": "", "other": "grün"}]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    assert read(str(path)) == b"Ein Haus.\nZwei.\n"
    assert read({"path": str(path), "field": "other"}).decode() == "x\ngrün\n"
    assert problems_of({"path": str(path), "field": "txt"}) == [
        f"train.en: {path}: has no field 'txt', but id, text, other: give {{path: FILE.jsonl, field: NAME}}"
    ]
    assert problems_of({"path": str(path), "field": "id"}) == [f"train.en: {path}: field 'id' holds no text"]
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(data + b"no JSON\n")
    with pytest.raises(TextError, match=r"bad\.jsonl: a line is not JSON with a text field 'text': b'no JSON'"):
        read(str(bad))


def test_archives_are_refused_by_name_or_content(tmp_path: Path) -> None:
    (tmp_path / "inside.txt").write_bytes(TEXT * 100)
    names = {
        "a.tar": "w",
        "a.tar.gz": "w:gz",
        "a.tgz": "w:gz",
        "a.tar.xz": "w:xz",
        "named.gz": "w:gz",
        "named.txt": "w",
    }
    for name, mode in names.items():
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / "inside.txt")
    (tmp_path / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.write(tmp_path / "inside.txt")
    (tmp_path / "rows.json").write_text('[{"text": "a"}]\n')
    found = problems_of([str(tmp_path / name) for name in [*names, "a.7z", "a.zip", "rows.json"]])
    assert sorted(problem.rpartition("/")[2] for problem in found) == [
        *sorted(f"{name}: is an archive: unpack it, and give the files in it" for name in [*names, "a.7z", "a.zip"]),
        "rows.json: is JSON, not text: give lines of objects as FILE.jsonl",
    ]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / "secret.txt"
    path.write_bytes(TEXT)
    path.chmod(0)
    assert "secret.txt: cannot be read" in problems_of(str(path))[0]


def test_a_file_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"Z\xfcrich.txt")).write_bytes(TEXT)
    (problem,) = problems_of(f"{tmp_path}/*.txt")
    assert problem.endswith("rich.txt': its name is not UTF-8: rename it")
    problem.encode()


def test_a_pattern_names_files_in_order(tmp_path: Path) -> None:
    for number in (2, 1):
        (tmp_path / f"part{number}.txt").write_text(f"{number}\n")
    assert read(str(tmp_path / "part*.txt")) == b"1\n2\n"


@pytest.mark.parametrize("value", [[], 3, {"path": "x"}, {"dataset": "x", "colour": "red"}, [None]])
def test_what_is_no_input_is_refused(value: object) -> None:
    assert len(problems_of(value)) == 1


# ---- tables and folders


def write_parquet(path: Path, rows: list[str | None], column: str = "text") -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(rows))), column: rows}), path)


def test_parquet_rows_are_lines_and_articles_several(tmp_path: Path) -> None:
    path = tmp_path / "articles.parquet"
    write_parquet(path, ["A title\n\nFirst paragraph.\n \nSecond.", None, "", "one line"])
    expected = b"A title\nFirst paragraph.\nSecond.\none line\n"
    assert read(str(path)) == expected
    other = tmp_path / "other.parquet"
    write_parquet(other, ["one line"], column="sentence")
    assert read({"path": str(other), "column": "sentence"}) == b"one line\n"
    assert "has no column 'text', but id, sentence" in problems_of(str(other))[0]
    assert "holds int64, not text" in problems_of({"path": str(other), "column": "id"})[0]


def test_blank_lines_and_missing_rows_are_the_same_in_json_lines_and_parquet(tmp_path: Path) -> None:
    rows = ["a\n\n \t\nb", None, "", "\u3000\n\u00a0", "c\u2028d\r\n"]
    write_parquet(tmp_path / "rows.parquet", rows)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    expected = "a\nb\n\u3000\n\u00a0\nc\u2028d\r\n".encode()
    assert read(str(tmp_path / "rows.parquet")) == read(str(tmp_path / "rows.jsonl")) == expected


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "articles.parquet"
    write_parquet(path, ["some text"] * 1000)
    path.write_bytes(path.read_bytes()[:-10])
    assert "articles.parquet: is truncated or not a parquet file" in problems_of(str(path))[0]


def test_a_folder_in_the_hubs_layout_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ["one", "two\n\nthree"])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ["four"])
    assert read(str(tmp_path)) == b"one\ntwo\nthree\nfour\n"
    assert read({"dataset": str(tmp_path), "split": "train", "column": "text"}) == b"one\ntwo\nthree\nfour\n"
    assert "has no column 'body'" in problems_of({"dataset": str(tmp_path), "column": "body"})[0]
    assert "cannot be opened as a data set" in problems_of({"dataset": str(tmp_path), "split": "none"})[0]


def test_news_crawl_takes_the_best_file_of_each_year_of_its_language(tmp_path: Path) -> None:
    names = [
        "news.2008.en.shuffled.gz",
        "news.2007.en.shuffled.gz",
        "news.2014.en.shuffled.gz",
        "news.2014.en.shuffled.v2.gz",
        "news.2017.en.shuffled.deduped.gz",
        "news.2007.de.shuffled.gz",
        "news.2009.en.shuffled.gz.part",
    ]
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(f"{name}\n".encode()))
    expected = [names[1], names[0], names[3], names[4]]
    assert read(str(tmp_path)).decode().splitlines() == expected
    assert read(str(tmp_path), "de").decode().splitlines() == ["news.2007.de.shuffled.gz"]
    assert "no News Crawl files of language fr" in problems_of(str(tmp_path), "fr")[0]


def test_wikiextractor_marks_and_blank_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "AB").mkdir()
    (tmp_path / "AA").mkdir()
    article = '<doc id="1" url="u" title="Zug">\nZug\n\nEin Zug fährt.\n \n\n</doc>\n'
    article += '<doc id="2" url="u" title="Ball">\nBall\n\n</doc>\n'
    (tmp_path / "AB" / "wiki_00").write_text(article)
    (tmp_path / "AA" / "wiki_00.bz2").write_bytes(bz2.compress(b'<doc id="0">\nErster\n</doc>\n'))
    rows = [{"id": "3", "text": "Titel\n\nText hier."}, {"id": "4", "text": ""}]
    (tmp_path / "AB" / "wiki_01").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(str(tmp_path)).decode().splitlines() == [
        "Erster",
        "Zug",
        "Ein Zug fährt.",
        "Ball",
        "Titel",
        "Text hier.",
    ]

    digests = []
    for _ in range(2):
        stats = ReadStats()
        (source,), _ = sources_of("train.de", str(tmp_path), "de")
        list(source.chunks(stats))
        digests.append((stats.sha256, stats.done))
    assert digests[0] == digests[1]
    assert digests[0][1] == sum(path.stat().st_size for path in tmp_path.rglob("wiki_*"))


def test_sgm_segments_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "newstest.sgm"
    path.write_text(
        '<refset setid="newstest2013">\n<doc>\n<hl>\n<seg id="1">Erste &amp; letzte.</seg>\n</hl>\n'
        '<p>\n<seg id="2"> Zwei\n  Zeilen </seg>\n<SEG id="3"></SEG></p>\n</doc>\n</refset>\n'
    )
    assert read(str(path)).decode() == "Erste &amp; letzte.\nZwei Zeilen\n\n"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(TextError, match=r"newstest\.sgm: is truncated: 2 segments begin, 1 end"):
        read(str(path))
    path.write_text("no markup\n")
    assert "holds no <seg> elements" in problems_of(str(path))[0]


@given(st.binary(max_size=60), st.integers(1, 9), st.integers(1, 20))
def test_whole_lines_lose_nothing(data: bytes, chunk: int, max_held: int) -> None:
    chunks = [data[start : start + chunk] for start in range(0, len(data), chunk)]
    assert b"".join(whole_lines(chunks, max_held)) == data
