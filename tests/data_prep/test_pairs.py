"""Parallel text through the whole preparation: what comes out, what is dropped, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep.aligned import first_break, line_lengths, misaligned
from data_prep.sources.pairs import pair_sources_of
from tests.conftest import golden_pieces, read_lines
from tests.data_prep.test_prepare import files_of, in_child, killed_after, made_text, problems, run, words_of, write
from xlm_train.data.corpus import Corpus
from xlm_train.runtime.errors import TextError, UserError
from xlm_train.text.files import TextFile
from xlm_train.text.tokenise import Tokeniser
from xlm_train.text.vocabulary import Vocabulary

Given = dict[str, dict[str, Any]]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[str]]:
    """Two aligned files for training, validation and test: de, en."""
    folder = tmp_path / "text"
    folder.mkdir()
    return {
        split: [write(folder / f"{split}.{language}", pairs_text(language, n, seed)) for language in ("de", "en")]
        for split, n, seed in (("train", 200, 5), ("valid", 30, 6), ("test", 20, 7))
    }


def pairs_text(language: str, n: int, seed: int) -> list[str]:
    """Made-up sentences, all of whose pieces training text has."""
    return [line.replace("-", " ") for line in made_text(language, n, seed)]


def given(files: dict[str, Any], name: str = "de-en", **texts: dict[str, Any]) -> Given:
    return {"pairs": {name: dict(files)}, **texts}


def pair_lines(out: Path, split: str, name: str = "de-en") -> list[tuple[str, str]]:
    """The pairs of a corpus as words."""
    corpus = Corpus(out)
    words = Vocabulary.from_file(out / "vocab").words
    pairs = corpus.pairs(split, name)
    return [
        tuple(" ".join(words[i] for i in side).replace("@@ ", "") for side in pair)  # type: ignore[misc]
        for pair in pairs.read(np.arange(pairs.n))
    ]


def tokenised(files: list[str]) -> list[tuple[str, str]]:
    sides = (Tokeniser(code).tokenise(read_lines(Path(file))) for code, file in zip(("de", "en"), files, strict=True))
    return list(zip(*sides, strict=True))


# ---- what comes out


def test_pairs_alone_make_a_corpus(tmp_path: Path, files: dict[str, list[str]]) -> None:
    manifest = run(tmp_path / "out", given(files))
    corpus = Corpus(tmp_path / "out")
    assert corpus.languages == {"de": 0, "en": 1}
    for split, sides in files.items():
        assert pair_lines(tmp_path / "out", split) == tokenised(sides)
        entry = manifest["pairs"][split]["de-en"]
        assert entry["sentences"] == entry["lines"] == len(tokenised(sides))
        assert entry["dropped"] == {"too_long": 0, "empty": 0, "duplicates": 0, "test_overlap": 0}
        assert manifest["splits"][split] == {}
        order = corpus.length_order(split, "de-en")
        assert len(order.numbers) == entry["sentences"]
    assert (tmp_path / "out" / "vocab.de").exists()


def rows_of(sides: tuple[list[str], list[str]], folder: Path, kind: str) -> list[Any]:
    """Rows of text that belong together, some of them null, blank or of several lines, each on one side alone."""
    found: list[Any] = []
    for language, lines, odd in zip(
        ("de", "en"), sides, ({7: None, 40: "der\ndie"}, {90: "", 120: "the\n\nand\n"}), strict=True
    ):
        rows = [odd.get(number, line) for number, line in enumerate(lines)]
        if kind == "parquet":
            path = folder / f"rows.{language}.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(rows, pyarrow.string())}), path)
        else:
            path = folder / f"rows.{language}.jsonl"
            write(path, [json.dumps({"text": row}) for row in rows])
        found.append(str(path))
    return found


def test_rows_of_two_files_stay_pairs(tmp_path: Path) -> None:
    sides = pairs_text("de", 200, 5), pairs_text("en", 200, 5)
    rows = rows_of(sides, tmp_path, "jsonl")
    manifest = run(tmp_path / "out", given({"train": rows}), holdout__sentences=2)
    found = [pair for split in ("train", "valid", "test") for pair in pair_lines(tmp_path / "out", split)]
    kept = [pair for number, pair in enumerate(zip(*sides, strict=True)) if number not in (7, 40, 90, 120)]
    files = [
        write(tmp_path / f"kept.{code}", list(side))
        for code, side in zip(("de", "en"), zip(*kept, strict=True), strict=True)
    ]
    assert {*tokenised(files)} < {*found}
    assert len(found) == len(kept) + 2  # and the two of several lines
    assert manifest["pairs"]["train"]["de-en"]["dropped"]["empty"] == 2
    assert manifest["tools"]["rows"] == "lines"  # what was made before has other pairs


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_of_parallel_splits_stay_aligned(tmp_path: Path, kind: str) -> None:
    sides = pairs_text("de", 200, 5), pairs_text("en", 200, 5)
    valid = dict(zip(("de", "en"), rows_of(sides, tmp_path, kind), strict=True))
    mono = {code: write(tmp_path / f"mono.{code}", pairs_text(code, 300, 1)) for code in ("de", "en")}
    test = {code: write(tmp_path / f"test.{code}", pairs_text(code, 30, 2)) for code in ("de", "en")}
    run(tmp_path / "out", {"train": mono, "valid": valid, "test": test}, parallel=["valid"])
    de, en = (words_of(tmp_path / "out", "valid", code) for code in ("de", "en"))
    assert (de[7], en[90], de[40], en[120]) == ("", "", "der die", "the and")
    assert [len(de), len(en)] == [200, 200]


def test_they_are_what_the_originals_chain_gives(tmp_path: Path, shared: Path) -> None:
    """Raw text to ids against perl, fastBPE and the original's indexing, with the limit of each language."""
    goldens = shared / "goldens/bpe"
    sides = [str(shared / f"corpora/sutta.parvalid.{code}.gz") for code in ("de", "en")]
    known = {"codes": str(goldens / "codes"), "vocab": str(goldens / "vocab")}
    own = {code: str(goldens / f"vocab.{code}") for code in ("de", "en")}
    run(tmp_path / "out", given({"valid": sides}), **known, language_vocab=own)
    vocabulary = Vocabulary.from_file(goldens / "vocab")
    expected = [
        [[vocabulary.index(piece) for piece in line.split()] for line in golden_pieces(shared, name, limited=True)]
        for name in ("parvalid.de", "parvalid.en")
    ]
    pairs = Corpus(tmp_path / "out").pairs("valid", "de-en")
    found = [[side.tolist() for side in pair] for pair in pairs.read(np.arange(pairs.n))]
    assert found == [list(pair) for pair in zip(*expected, strict=True)]


def test_codes_and_vocabulary_come_from_text_by_itself_where_there_is_some(
    tmp_path: Path, files: dict[str, list[str]]
) -> None:
    mono = {code: write(tmp_path / f"mono.{code}", pairs_text(code, 300, 1)) for code in ("de", "en")}
    without = run(tmp_path / "without", {"train": mono}, holdout__sentences=10)
    both = run(tmp_path / "both", given(files, train=mono), holdout__sentences=10)
    for name in ("codes", "vocab", "vocab.de", "vocab.en"):
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "both" / name).read_bytes(), name
    for code in ("de", "en"):
        assert without["splits"]["train"][code]["shards"] == both["splits"]["train"][code]["shards"]
    assert without["lineage"] != both["lineage"]
    assert pair_lines(tmp_path / "both", "valid") == tokenised(files["valid"])


def test_kinds_of_input_and_the_order_of_the_name_give_the_same_pairs(
    tmp_path: Path, files: dict[str, list[str]]
) -> None:
    german, english = (read_lines(Path(file)) for file in files["train"])
    rows = list(zip(german, english, strict=True))
    tsv = write(tmp_path / "train.tsv", [f"{one}\t{other}" for one, other in rows])
    swapped = tmp_path / "train.tsv.gz"
    swapped.write_bytes(gzip.compress("".join(f"{other}\t{one}\n" for one, other in rows).encode()))
    parquet = str(tmp_path / "train.parquet")
    column = [{"en": other, "de": one, "fr": "non"} for one, other in rows]
    pyarrow.parquet.write_table(pyarrow.table({"translation": column}), parquet)
    packed = [tmp_path / f"packed.{code}.gz" for code in ("de", "en")]
    halves: list[list[str]] = [[], []]
    for number, lines in enumerate((german, english)):
        packed[number].write_bytes(gzip.compress("\n".join(lines).encode()))  # no newline at the end
        for half in (0, 1):
            halves[half].append(write(tmp_path / f"{half}.{number}", lines[100 * half : 100 * (half + 1)]))
    for name, value in (
        ("de-en", files["train"]),
        ("de-en", [str(path) for path in packed]),
        ("de-en", halves),
        ("en-de", files["train"][::-1]),
        ("de-en", tsv),
        ("en-de", [str(swapped)]),
        ("en-de", parquet),
        ("de-en", {"path": parquet, "column": "translation"}),
    ):
        sources, wrong = pair_sources_of("pairs", value, ("de", "en"), name == "en-de")
        assert wrong == []
        found: tuple[list[str], list[str]] = [], []
        for source in sources:
            for piece in source.pieces(1000, 10_000, source.reading()):
                assert piece.sides[0].data.count(b"\n") == piece.sides[1].data.count(b"\n")
                for lines, side in zip(found, piece.sides, strict=True):
                    lines += side.data.decode().split("\n")[:-1]
        assert found == (german, english)


def test_a_pair_named_the_other_way_round_is_swapped_and_said_to_be(
    tmp_path: Path, files: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path / "first", given(files))
    second = run(tmp_path / "second", given({split: sides[::-1] for split, sides in files.items()}, name="en-de"))
    assert first["lineage"] == second["lineage"]
    assert "pairs.en-de is named de-en in the corpus" in capsys.readouterr().err


def test_a_data_set_in_the_hubs_layout(tmp_path: Path, files: dict[str, list[str]]) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    rows = zip(*map(read_lines, map(Path, files["train"])), strict=True)
    column = [{"de": german, "en": english} for german, english in rows]
    pyarrow.parquet.write_table(pyarrow.table({"translation": column}), folder / "train-00000-of-00001.parquet")
    text = given({**files, "train": {"dataset": str(folder.parent)}})
    run(tmp_path / "out", text)
    assert pair_lines(tmp_path / "out", "train") == tokenised(files["train"])
    named = folder.rename(tmp_path / "rows.parquet")  # as Spark writes it
    run(tmp_path / "spark", given({**files, "train": str(named)}))
    assert pair_lines(tmp_path / "spark", "train") == tokenised(files["train"])
    named.rename(folder)
    text["pairs"]["de-en"]["train"] = {"dataset": str(folder.parent), "column": "text"}
    assert "has no column 'text', but translation" in problems(tmp_path / "other", text)


@pytest.mark.parametrize("changes", [{"workers": 2, "piece_bytes": 900}, {"piece_bytes": 200}])
def test_workers_and_pieces_change_no_byte(
    tmp_path: Path, files: dict[str, list[str]], changes: dict[str, Any]
) -> None:
    for side in (0, 1):
        write(Path(files["train"][side]), read_lines(Path(files["train"][side]))[:60])
    lines = read_lines(Path(files["train"][0]))
    write(Path(files["train"][0]), [*lines[:20], "", *lines[21:30], "x" * 500, *lines[31:59], "y" * 500])
    text = given({"train": files["train"], "valid": files["valid"]})
    settings = {"deduplicate": True, "holdout__sentences": 10, "shard_tokens": 500, "max_line_bytes": 400}
    manifest = run(tmp_path / "first", text, **settings)
    dropped = manifest["pairs"]["train"]["de-en"]["dropped"]
    assert dropped == {"too_long": 2, "empty": 1, "duplicates": 0, "test_overlap": 0}
    assert len(manifest["pairs"]["train"]["de-en"]["sides"]["de"]["shards"]) > 1
    run(tmp_path / "second", text, **settings, **changes)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


def test_killed_after_every_write_it_ends_with_the_same_bytes(tmp_path: Path, files: dict[str, list[str]]) -> None:
    text = given({"train": files["valid"], "valid": files["test"]})
    run(tmp_path / "first", given(files))
    codes = str(tmp_path / "first" / "codes")
    settings = {"holdout__sentences": 10, "piece_bytes": 2_000, "codes": codes}
    run(tmp_path / "whole", text, **settings)
    out = tmp_path / "out"
    for attempt in range(150):

        def work(writes: int = attempt % 4 + 3) -> None:
            killed_after(writes)
            run(out, text, **settings)

        status = in_child(work)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), "stopped by itself"
    else:
        pytest.fail("never finished")
    assert attempt > 10
    assert files_of(out) == files_of(tmp_path / "whole")


def test_the_vocabulary_limit_holds_for_pairs_too(tmp_path: Path, files: dict[str, list[str]]) -> None:
    write(Path(files["valid"][0]), ["Der house train sagte houses."])  # merged only in English
    write(Path(files["valid"][1]), ["The house."])
    run(tmp_path / "with", given(files))
    run(tmp_path / "without", given(files), bpe__vocab_limit=[])
    limited, free = (
        Corpus(tmp_path / name).pairs("valid", "de-en").read(np.array([0]))[0] for name in ("with", "without")
    )
    assert len(limited[0]) > len(free[0])


# ---- which pairs go where


def test_a_pair_with_an_empty_side_is_dropped_in_every_split(tmp_path: Path, files: dict[str, list[str]]) -> None:
    for split in files:
        german, english = (read_lines(Path(file)) for file in files[split])
        german[3], english[5], german[7], english[7] = "", "\u00a0", "\x07 ", "\t"
        write(Path(files[split][0]), german)
        write(Path(files[split][1]), english)
    manifest = run(tmp_path / "out", given(files))
    for split, sides in files.items():
        expected = [pair for number, pair in enumerate(tokenised(sides)) if number not in (3, 5, 7)]
        assert pair_lines(tmp_path / "out", split) == expected
        assert manifest["pairs"][split]["de-en"]["dropped"]["empty"] == 3


def test_identical_sides_are_counted(tmp_path: Path, files: dict[str, list[str]]) -> None:
    german = read_lines(Path(files["train"][0]))
    write(Path(files["train"][1]), german[:40] + read_lines(Path(files["train"][1]))[40:])
    manifest = run(tmp_path / "out", given(files))
    assert manifest["pairs"]["train"]["de-en"]["identical"] == 40
    assert manifest["pairs"]["valid"]["de-en"]["identical"] == 0
    assert "train.de-en: 20% of the pairs have the same text on both sides" in manifest["warnings"]


def test_pairs_are_held_out_repeated_and_compared_as_one(tmp_path: Path, files: dict[str, list[str]]) -> None:
    german, english = (read_lines(Path(file)) for file in files["train"])
    # pair 0 comes three times; sentence 1 comes with another translation, which makes no copy of the pair
    write(Path(files["train"][0]), [*german, german[0], german[0], german[1]])
    write(Path(files["train"][1]), [*english, english[0], english[0], english[2]])
    text = given({"train": files["train"]})
    manifest = run(tmp_path / "out", text, holdout__sentences=30, deduplicate=True)
    found = {split: pair_lines(tmp_path / "out", split) for split in ("train", "valid", "test")}
    assert len(found["valid"]) == len(found["test"]) == 30
    every = found["train"] + found["valid"] + found["test"]
    assert len(every) == len(set(every)) == 201
    assert set(every) == set(tokenised(files["train"]))
    entry = manifest["pairs"]["train"]["de-en"]
    assert entry["duplicates"] == 2
    assert entry["held_out"] + entry["dropped"]["duplicates"] + len(found["train"]) == 203


def test_text_that_equals_pairs_held_out_is_told_and_left_out_if_wanted(
    tmp_path: Path, files: dict[str, list[str]]
) -> None:
    held = read_lines(Path(files["valid"][0]))
    mono = {
        "de": write(tmp_path / "mono.de", [*made_text("de", 100, 1), held[4], held[4], held[9]]),
        "en": write(tmp_path / "mono.en", made_text("en", 100, 1)),
    }
    german = read_lines(Path(files["train"][0]))
    write(Path(files["train"][0]), [*german[:50], held[9], *german[51:]])
    valid, test = (
        {code: write(tmp_path / f"{split}.{code}", pairs_text(code, 10, seed)) for code in ("de", "en")}
        for split, seed in (("valid", 2), ("test", 3))
    )
    text = given(files, train=mono, valid=valid, test=test)
    kept = run(tmp_path / "kept", text)
    assert kept["splits"]["train"]["de"]["overlap"] == {"lines_in_valid_or_test": 3, "removed": False}
    assert kept["splits"]["train"]["en"]["overlap"]["lines_in_valid_or_test"] == 0
    assert kept["pairs"]["train"]["de-en"]["overlap"] == {"lines_in_valid_or_test": 1, "removed": False}
    assert kept["pairs"]["valid"]["de-en"]["sides"]["de"]["overlap"] == {"lines_in_train": 2}
    gone = run(tmp_path / "gone", text, remove_test_overlap=True)
    assert gone["splits"]["train"]["de"]["dropped"]["test_overlap"] == 3
    assert gone["pairs"]["train"]["de-en"]["dropped"]["test_overlap"] == 1
    assert Tokeniser("de").tokenise([held[9]])[0] not in [
        german for german, _ in pair_lines(tmp_path / "gone", "train")
    ]
    assert Tokeniser("de").tokenise([held[4]])[0] not in words_of(tmp_path / "gone", "train", "de")


# ---- mistakes


@pytest.mark.parametrize("place", [130, 500, 871])
@pytest.mark.parametrize("side", [0, 1])
def test_a_line_missing_in_real_text_is_found(tmp_path: Path, shared: Path, place: int, side: int) -> None:
    files = []
    for number, code in enumerate(("de", "en")):
        lines = read_lines(shared / f"corpora/sutta.parvalid.{code}.gz")
        if number == side:
            del lines[place - 1]
        files.append(TextFile(Path(write(tmp_path / f"sutta.{code}", lines))))
    found = misaligned((files[0], files[1]))
    assert found is not None
    counts = ["1,000", "1,000"]
    counts[side] = "999"
    assert f"sutta.de has {counts[0]} lines, {files[1].name} {counts[1]}: not aligned" in found
    told = int(found.rpartition("line ")[2].replace(",", ""))
    assert abs(told - place) <= 3


def test_lengths_of_aligned_text_have_no_break(shared: Path) -> None:
    first, second = (line_lengths(TextFile(shared / f"corpora/sutta.parvalid.{code}.gz")) for code in ("de", "en"))
    assert len(first) == 1000
    assert first_break(first, second) is None
    assert first_break(first[:-7], second) is None


def test_unequal_files_are_refused_before_the_work_with_all_others(tmp_path: Path, files: dict[str, list[str]]) -> None:
    for split, side in (("train", 1), ("valid", 0)):
        lines = read_lines(Path(files[split][side]))
        write(Path(files[split][side]), lines[:-3])
    with pytest.raises(UserError) as error:
        run(tmp_path / "out", given(files))
    assert len(error.value.problems) == 2
    assert "pairs.de-en.train: " in error.value.problems[0]
    assert "train.de has 200 lines" in error.value.problems[0]
    assert "train.en 197: not aligned" in error.value.problems[0]
    assert not (tmp_path / "out" / ".work" / "tokenised").exists()


def test_mistakes_are_found_together(tmp_path: Path, files: dict[str, list[str]]) -> None:
    three = write(tmp_path / "three.tsv", ["a\tb", "a\tb\tc"])
    parquet = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"translation": [{"de": "a", "fr": "b"}]}), parquet)
    text = {
        "pairs": {
            "de-en": {"train": [files["train"][0], str(tmp_path / "none")], "valid": files["valid"][0], "dev": "x.tsv"},
            "en-de": {"train": files["train"][::-1], "test": [files["test"][0]] * 2},
            "de-deutsch": {"train": files["train"]},
            "de-fr": {"train": three, "valid": files["train"] + files["valid"], "test": []},
            "en-fr": {"train": str(parquet)},
        }
    }
    found = problems(tmp_path / "out", text)
    for expected in (
        f"pairs.de-en.train: {tmp_path / 'none'}: there is no such file",
        f"pairs.de-en.valid: {files['valid'][0]} is no parallel text: give two aligned files [FILE.de,FILE.en]",
        "pairs.de-en.dev: there is no split 'dev'",
        "pairs.en-de.train: is given twice: as de-en and as en-de",
        f"pairs.en-de.test: {files['test'][0]}: is both sides of the pair",
        "pairs.de-deutsch: is not two different language codes, as de-en",
        f"pairs.de-fr.train: {three}: line 2 has 3 columns, not two with a tab between them",
        "pairs.de-fr.test: names no input",
        f"pairs.en-fr.train: {parquet}: column 'translation' holds struct<de: string, fr: string>: no text of en",
    ):
        assert expected in found
    assert "which pair and split? give 'pairs.de-en.train=" in problems(tmp_path / "out", {"pairs": {"de-en": "a.tsv"}})


@pytest.mark.parametrize("side", [0, 1])
def test_a_file_given_twice_is_an_error(side: int, tmp_path: Path, files: dict[str, list[str]]) -> None:
    files["valid"][side] = files["train"][side]
    found = problems(tmp_path / "out", given(files))
    assert f"pairs.de-en.valid: {files['train'][side]} is given twice (also in pairs.de-en.train)" in found


def test_one_file_under_two_paths_is_found(tmp_path: Path, files: dict[str, list[str]]) -> None:
    german = Path(files["train"][0])
    other_way = str(german.parent / ".." / german.parent.name / german.name)
    assert "is both sides of the pair" in problems(tmp_path / "out", given({"train": [str(german), other_way]}))
    files["valid"] = [other_way, files["valid"][1]]
    assert "is given twice (also in pairs.de-en.train)" in problems(tmp_path / "out", given(files))
    tsv = write(tmp_path / "t.tsv", ["eins\tone"])
    link = tmp_path / "link.tsv"
    link.symlink_to(tsv)
    assert "is given twice" in problems(tmp_path / "out", given({"train": tsv, "valid": str(link)}))


def test_pairs_that_are_null_are_no_text(tmp_path: Path) -> None:
    assert "no text is given: " in problems(tmp_path / "out", given({"train": None}))


def test_a_bad_row_in_the_middle_of_a_tsv_is_an_error(tmp_path: Path, files: dict[str, list[str]]) -> None:
    rows = [f"{number} sagte\t{number} said" for number in range(20_000)]
    tsv = write(tmp_path / "t.tsv", [*rows, "no column", *rows])
    with pytest.raises(TextError, match=r"t\.tsv: line 20,001 has 1 columns, not two"):
        run(tmp_path / "out", given({**files, "train": tsv}))


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path, files: dict[str, list[str]]) -> None:
    path = Path(files["train"][1])
    data = b"z" * 900 + b"\n" + path.read_bytes()[: -len(read_lines(path)[-1].encode()) - 1]
    data = data.replace(b"\n", b"\xfc\n", 30).replace(b"\xfc\n", b"\n", 29)
    path.write_bytes(data)
    place = data.index(b"\xfc")
    with pytest.raises(TextError) as error:
        run(tmp_path / "out", given(files), decode_errors="stop", max_line_bytes=800, piece_bytes=1000)
    line = data.count(b"\n", 0, place) + 1
    assert f"train.en: line {line:,}, byte {place:,}: byte 0xfc is not UTF-8" in str(error.value)
    manifest = run(tmp_path / "out", given(files), max_line_bytes=800)
    assert manifest["pairs"]["train"]["de-en"]["sides"]["en"]["raw"]["replaced"] == 1
    assert manifest["pairs"]["train"]["de-en"]["dropped"]["too_long"] == 1


# ---- again


def test_a_finished_corpus_of_pairs_is_recognised_and_not_replaced_unasked(
    tmp_path: Path, files: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, text = tmp_path / "out", given({"train": files["train"], "valid": files["valid"]})
    first = run(out, text, holdout__sentences=10)
    before = files_of(out)
    capsys.readouterr()
    assert run(out, text, holdout__sentences=10, workers=2) == first
    assert "nothing to do" in capsys.readouterr().err
    (out / "train.de-en.bylength.npy").unlink()
    run(out, text, holdout__sentences=10)
    assert files_of(out) == before
    lineage = first["lineage"][:12]
    with pytest.raises(UserError, match=rf"lineage {lineage}\).*bpe\.n_codes: 60 then, 50 now.*overwrite=true"):
        run(out, text, holdout__sentences=10, bpe__n_codes=50)
    shutil.copy(files["test"][0], files["valid"][0])
    shutil.copy(files["test"][1], files["valid"][1])
    with pytest.raises(UserError, match=r"valid\.de-en\.de: other text; valid\.de-en\.en: other text"):
        run(out, text, holdout__sentences=10)
    assert files_of(out) == before
    assert run(out, text, holdout__sentences=10, overwrite=True)["lineage"] != first["lineage"]
