"""`launch/table2.py`: what it may be told, what its page says, and that it goes on where it was killed."""

from __future__ import annotations

import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import REPOSITORY, process_environment
from tests.launch.conftest import LAUNCH
from xlm_train.config.overrides import compose
from xlm_train.runtime.errors import EXIT_PREEMPTED, ConfigError


@pytest.fixture
def table2(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(LAUNCH)
    import table2

    return table2


@pytest.fixture
def page(table2: ModuleType) -> ModuleType:
    return sys.modules["table2_page"]


def test_every_mistake_is_told_at_once(table2: ModuleType, tmp_path: Path) -> None:
    words = ["rows=mlm/mlm,mlm/foo", "seeds=1,x", "minutes_a_row=0", "device=tpu", "n_cods=3", "jobs=0"]
    with pytest.raises(ConfigError) as caught:
        table2.read_options(words)
    told = "\n".join(caught.value.problems)
    for part in ("rows=mlm/mlm,mlm/foo: mlm/foo: rows are all", "seeds=1,x: give whole numbers", "minutes_a_row=0: must be above 0",
                 "device=tpu: must be auto or cpu or gpu", "n_cods=3: give one of table2=", "jobs=0: must be above 0"):  # fmt: skip
        assert part in told
    with pytest.raises(ConfigError) as caught:
        table2.read_options([f"text.en={tmp_path / 'none'}", f"text.fr={tmp_path / 'none'}"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "valid.en", "valid.fr", "test.en", "test.fr", f"text.en={tmp_path / 'none'}", f"text.fr={tmp_path / 'none'}",
    ]  # fmt: skip


def test_what_an_option_would_not_change_is_refused(table2: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in (["table2=page", "rows=mlm/mlm"], ["table2=paper", "minutes_a_row=1"], [f"out={tmp_path}/file/x"], ["out=a,b"],
                  ["out="], ["text.EN=x", "text.de=y"]):  # fmt: skip
        with pytest.raises(ConfigError):
            table2.read_options(words)
    options = table2.read_options(["rows=mlm/mlm,none/none,MLM/mlm", "seeds=1,0,1"])
    assert (options.rows, options.seeds) == (["mlm/mlm", "none/none"], [1, 0])


def test_a_folder_keeps_what_it_was_made_with(table2: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def remember(*words: str) -> list[str]:
        return table2.remember(table2.read_options([f"out={out}", *words]), out)

    with pytest.raises(ConfigError, match="nothing was begun there"):
        remember("table2=page")
    assert remember("rows=none/none,none/clm", "seeds=2") == ["none/none,2", "none/clm,2"]
    more = ["none/none,0", "none/none,2", "none/clm,2", "mlm/mlm,0", "supervised"]
    assert remember("rows=mlm/mlm,none/none") == more
    assert remember("table2=page") == more
    with pytest.raises(ConfigError) as caught:
        remember("n_codes=300", "minutes_a_row=2")
    assert caught.value.problems == [
        f"out={out}: was made with minutes_a_row=None, not 2.0; give another out=",
        f"out={out}: was made with n_codes=4000, not 300; give another out=",
    ]
    assert remember("table2=page") == more


def test_files_of_any_name_are_given_to_xlm_prep(table2: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "Bücher (1), = 'alt'"
    folder.mkdir()
    words = small_text(folder)
    options = table2.read_options(words)
    given = [word for word in table2.prepare_words(options, tmp_path / "corpus")[1:] if word.startswith("pairs.")]
    config = compose("prep", [f"+{word}" for word in given], None)
    for split in ("valid", "test"):
        assert config.pairs["de-en"][split] == [options.texts[split][code] for code in ("de", "en")]


def test_the_rows_and_the_length_become_overrides_that_xlm_train_takes(table2: ModuleType) -> None:
    options = table2.read_options(["rows=none/none,CLM/mlm", "minutes_a_row=5"])
    assert options.rows == ["none/none", "clm/mlm"]
    assert len(table2.read_options([]).rows) == 9
    words = options.steps("umt")
    config = compose("train", ["experiment=table2_mini", "data.path=x", "init=clm_mlm", *words], None)
    steps = config.trainer.max_steps
    assert steps == 5 * table2.UPDATES_A_MINUTE["umt"]
    assert config.callbacks.validation.every_n_steps == steps // table2.VALIDATIONS
    assert config.schedule.warmup_updates == steps / 4
    assert config.objective.weights.ae == f"0:1,{steps * 3 // 16}:0.5"  # three quarters of steps / 4 iterations
    assert (config.init_encoder, config.init_decoder) == ("runs/clm", "runs/mlm")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_no_command_runs_ends_it_at_once(number: signal.Signals, table2: ModuleType) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        table2.Commands()
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(number)
        assert left.value.code == EXIT_PREEMPTED
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_there_is_a_start_for_each_row(table2: ModuleType) -> None:
    for row in table2.ROWS:
        config = compose("train", ["experiment=table2_mini", "data.path=x", f"init={row.replace('/', '_')}"], None)
        given = [side if side == "none" else f"runs/{side}" for side in row.split("/")]
        assert [path or "none" for path in (config.init_encoder, config.init_decoder)] == given


def test_the_text_is_what_its_page_says() -> None:
    lines = {
        file.name.removesuffix(".xz"): lzma.decompress(file.read_bytes()).decode().splitlines()
        for file in (LAUNCH / "table2_text").glob("*.xz")
    }
    counts = {name: len(found) for name, found in lines.items()}
    assert counts == {"train.en": 33_982, "train.de": 29_235} | {
        f"{split}.{code}": n
        for split, n in (("aligned", 700), ("valid", 300), ("test", 2_000))
        for code in ("en", "de")
    }
    assert "CC0 1.0" in (LAUNCH / "table2_text/README.md").read_text("utf-8")


def a_row(status: str, *points: list[float], bleu: float | None = None) -> dict[str, Any]:
    columns = ["step", "training seconds", "BLEU de-en", "BLEU en-de"]
    row = {
        "status": status,
        "steps": 40,
        "seconds": 80.0,
        "curve": {"columns": columns, "points": list(points)},
        "samples": [],
    }
    if bleu is not None:
        figures = {"value": bleu, "mean": bleu, "interval": 0.75}
        of_a_way = {"tokenised_bleu": {"value": bleu}, "bleu": figures, "chrf": figures, "rare_word_recall": 12.5}
        row["test"] = {"de-en": of_a_way, "en-de": of_a_way}
        row["checkpoint"] = {"step": points[-1][0], "sha256": "0" * 64}
    return row


FOUND: dict[str, Any] = {
    "corpus": {"lineage": "0123456789abcdef", "test_pairs": 2000},
    "rows": {
        "none/none,0": a_row("finished", [20, 30.0, 2.0, 1.0], [40, 90.0, 4.0, 3.0], bleu=3.25),
        "mlm/mlm,0": a_row("finished", [20, 40.0, 8.0, 7.0], [40, 60.0, 10.0, 11.0], bleu=10.5),
        "clm/clm,0": a_row("running", [20, 30.0, 5.0, 5.0]),
    },
    "without_a_model": {"de-en": {"constant": 3.5, "copied": 1.25, "dictionary": 6.75}, "en-de": {"constant": 2.5, "copied": 1.5}},
    "retrieval": {"mlm": {"step": 3500, "de-en": 41.0, "en-de": 39.5}},
}  # fmt: skip


def test_the_page(page: ModuleType, tmp_path: Path) -> None:
    page.write_page(tmp_path, FOUND)
    assert json.loads((tmp_path / "table2.json").read_text()) == FOUND
    assert (tmp_path / "table2.png").stat().st_size > 1000
    text = (tmp_path / "table2.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert ["mlm / mlm", "0", "40", "finished", "40", *2 * ["10.5", "10.5 ± 0.8", "10.5 ± 0.8", "12.5"]] in rows
    assert ["clm / clm", "0", "40", "running", *9 * [""]] in rows  # no figure of a row that has not ended
    assert ["dictionary", "", "", "", "", "6.8", "", "", "", "", "", "", ""] in rows
    assert ["mlm / mlm", "34.3", "26.4"] in rows
    assert "unverified but for 34.3" in text
    assert ["mlm", "3,500", "41.0", "39.5"] in rows
    # within the 60 s of the quicker row the other has its first validation alone; the unfinished row is left out
    assert ["none / none,0", "20", "60", "2.0", "1.0"] in rows
    assert ["mlm / mlm,0", "40", "60", "10.0", "11.0"] in rows
    assert not any(row[0] == "clm / clm,0" for row in rows)


def test_the_page_of_all_rows_in_a_browser_and_as_a_picture(page: ModuleType, tmp_path: Path) -> None:
    """Nine rows are more than there are colours."""
    names = [*(f"{row},0" for row in page.PAPER), "supervised"]
    sample = {"step": 20, "direction": "de-en", "source": "<i>", "translation": "a b", "reference": "b"}
    row = a_row("finished", [20, 30.0, 2.0, 1.0], [40, 90.0, 4.0, 3.0], bleu=3.25) | {"samples": [sample]}
    page.write_page(tmp_path, FOUND | {"rows": dict.fromkeys(names, row)})
    text = (tmp_path / "table2.html").read_text("utf-8")
    legends = {row: text.count(f"</svg>{row}</span>") for row in [*page.PAPER, "supervised"]}
    assert legends == dict.fromkeys(page.PAPER, 2) | {"supervised": 0}
    assert "&lt;i&gt;" in text
    assert (tmp_path / "table2.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_of_a_row_are_one_curve_and_one_mean(page: ModuleType, tmp_path: Path) -> None:
    rows = {
        "none/none,0": a_row("finished", [20, 30.0, 2.0, 1.0], [40, 90.0, 4.0, 3.0], bleu=3.25),
        "none/none,1": a_row("finished", [20, 30.0, 3.0, 1.0], [40, 90.0, 6.0, 5.0], bleu=4.25),
        "none/none,2": a_row("running", [20, 30.0, 4.0, 4.0]),
        "none/none,3": a_row("not started"),
        "mlm/mlm,0": a_row("finished", [20, 30.0, 8.0, 7.0], bleu=5.25),
    }
    first, _ = page.curves(FOUND | {"rows": rows})
    # only the first validation is one that all three have reached
    assert [(curve.label, curve.x, curve.y) for curve in first.curves] == [
        ("none/none, mean of 3 seeds", [20], [3.0]),
        ("mlm/mlm", [20], [8.0]),
    ]
    grid, _ = page.grids(FOUND | {"rows": rows}, ["de-en", "en-de"])
    assert grid.rows == [
        ["none", "3.8 (3.2 to 4.2, 2 seeds)", "", ""],
        ["clm", "", "", ""],
        ["mlm", "", "", "5.2"],
    ]
    # half the width of each interval is 0.75: the second pair's overlap
    assert page.differences(FOUND | {"rows": rows}, ["de-en"]).rows == [
        ["mlm/mlm - none/none", "+1.5", "2 of 2", "1 of 2", "+19.0", "+19.7"]
    ]
    page.write_page(tmp_path, FOUND | {"rows": rows})
    text = (tmp_path / "table2.md").read_text("utf-8")
    assert "3.8 (3.2 to 4.2, 2 seeds)" in text
    assert "+1.5" in text


def test_at_equal_time_the_shortest_row_sets_the_time_and_the_supervised_model_has_no_part(page: ModuleType) -> None:
    def row(*points: tuple[int, float, float]) -> dict[str, Any]:
        columns = ["step", "training seconds", "BLEU de-en"]
        return {"status": "finished", "curve": {"columns": columns, "points": [list(point) for point in points]}}

    rows = {
        "none/none,0": row((10, 100.0, 1.0), (20, 200.0, 3.0), (30, 300.0, 2.0)),
        "mlm/mlm,0": row((10, 150.0, 4.0), (20, 290.0, 5.0), (30, 450.0, 9.0)),
        "supervised": row((10, 50.0, 7.0)),
    }
    assert page.equal_time({"rows": rows}, ["de-en"]).rows == [
        ["none / none,0", "20", "300", "3.0"],
        ["mlm / mlm,0", "20", "300", "5.0"],
    ]


def test_a_row_has_only_scores_of_its_corpus_and_the_time_of_each_validation(page: ModuleType, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 10, "val/bleu": 1.0, "val/bleu_de-en": 1.0},
        {"step": 20, "speed/seconds_per_step": 2.0},
        {"step": 25, "val/bleu": 2.0, "val/bleu_de-en": 2.0},
        {"step": 40, "speed/seconds_per_step": 4.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (tmp_path / "score.json").write_text(json.dumps({"corpus": {"lineage": "of another corpus"}}), "utf-8")

    class Corpus:
        lineage = "of this one"

    found = page.row(tmp_path, tmp_path / "score.json", Corpus, {"de-en": None}, {})
    assert found["curve"]["points"] == [[10, 20.0, 1.0], [25, 60.0, 2.0]]
    assert found["seconds"] == 120.0
    assert "test" not in found


def test_the_dictionary_finds_the_words(page: ModuleType) -> None:
    pairs = [("das haus", "the house"), ("das buch", "the book"), ("ein buch", "a book"), ("ein haus", "a house")]
    found = page.dictionary([(source.split(), target.split()) for source, target in pairs])
    assert found == {"das": "the", "haus": "house", "buch": "book", "ein": "a"}


def test_rare_words_are_counted_as_often_as_they_are_wanted(page: ModuleType) -> None:
    made, references = ["a rare rare b", "x"], ["rare c rare", "rare odd"]
    assert page.recall(made, references, {"rare": 1, "odd": 2}) == 100 * 2 / 4
    assert page.recall(made, references, {"other": 1}) is None


def small_text(folder: Path) -> list[str]:
    """A few lines of every file, and the words that name them."""
    words = []
    for split, name, count in (
        ("text", "train", 600),
        ("valid", "valid", 8),
        ("test", "test", 12),
        ("aligned", "aligned", 40),
    ):
        for code in ("en", "de"):
            lines = lzma.decompress((LAUNCH / f"table2_text/{name}.{code}.xz").read_bytes()).decode().split("\n")
            path = folder / f"{split}.{code}"
            path.write_text("\n".join(lines[:count]) + "\n", "utf-8")
            words.append(f"{split}.{code}={path}")
    return words


@pytest.mark.slow
def test_killed_between_two_rows_it_does_only_what_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shape = [
        "rows=none/none,mlm/mlm",
        "minutes_pretraining=0.01",
        "minutes_a_row=0.03",
        "n_codes=300",
        "jobs=1",
        "device=cpu",
    ]
    words = [sys.executable, str(LAUNCH / "table2.py"), f"out={out}", *shape, *small_text(tmp_path)]
    environment = process_environment() | {"OMP_NUM_THREADS": "1"}
    runs = [out / f"runs/{name}" for name in ("mlm", "umt,init=none_none,seed=0", "umt,init=mlm_mlm,seed=0")]

    process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, start_new_session=True)
    deadline = time.monotonic() + 1800
    while not (runs[2] / "metrics.jsonl").exists():  # the second row has begun
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [(run / "metrics.jsonl").read_bytes() for run in runs[:2]]

    finished = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert [(run / "metrics.jsonl").read_bytes() for run in runs[:2]] == before
    assert "experiment=table2_mlm" not in finished.stdout
    found = json.loads((out / "table2.json").read_text())
    assert {name: row["status"] for name, row in found["rows"].items()} == dict.fromkeys(
        ("none/none,0", "mlm/mlm,0", "supervised"), "finished"
    )
    assert all({"de-en", "en-de"} == set(row["test"]) for row in found["rows"].values())
    assert set(found["without_a_model"]["de-en"]) == {"constant", "copied", "dictionary"}
    assert set(found["retrieval"]) == {"mlm"}
    scored = found["rows"]["mlm/mlm,0"]
    assert scored["checkpoint"]["step"] in [point[0] for point in scored["curve"]["points"]]
    assert len(scored["checkpoint"]["sha256"]) == 64

    scores = {file: file.stat().st_mtime_ns for file in (out / "scores").glob("*.json")}
    again = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert {file: file.stat().st_mtime_ns for file in scores} == scores
