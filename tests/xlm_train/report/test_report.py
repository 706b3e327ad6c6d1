"""The report of a run: what it says, in which states of the folder, and that its page is whole in itself."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from tests.conftest import command
from xlm_train.model.transformer import ModelShape
from xlm_train.report import html as page
from xlm_train.report import recipe, write_report
from xlm_train.report.content import sections
from xlm_train.report.curves import figures
from xlm_train.report.figures import Axis, Curve, Figure, number, reduce
from xlm_train.report.html import GREY
from xlm_train.report.reading import find_runs, read_run
from xlm_train.report.results import thinned
from xlm_train.report.svg import figure_html
from xlm_train.report.writing import as_html, as_markdown, title_of
from xlm_train.runtime.errors import UserError

HOSTILE = "<script>alert('x')</script>|</title>\"&amp;"


def lines_of(steps: int, every: int, tokens: int = 1000, validate: int = 0) -> list[dict[str, Any]]:
    """Metrics as a run writes them: the loss falls as 10 / sqrt(step), German 0.1 above English."""
    found: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        loss = 10 / math.sqrt(step)
        losses = {"train/loss": loss, "train/loss_de": loss + 0.05, "train/loss_en": loss - 0.05}
        rest = {"optim/lr": 1e-4, "optim/grad_norm": 1.0, "progress/steps": steps, "progress/tokens": step * tokens}
        speed = {"speed/tokens_per_second": 5000.0, "speed/seconds_per_step": tokens / 5000, "memory/peak_gb": 1.5}
        found.append({"step": step, "time": 1.79e9 + step, **losses, **rest, **speed})
        if validate and step % validate == 0:
            ppl = {"val/ppl_de": math.exp(loss + 0.1), "val/ppl_en": math.exp(loss)}
            val = {
                "val/loss_de": loss + 0.1,
                "val/loss_en": loss,
                "val/acc_de": 20.0,
                "val/acc_en": 30.0,
                "val/acc": 25.0,
            }
            found.append({"step": step, "time": 1.79e9 + step, **val, **ppl, "val/ppl": sum(ppl.values()) / 2})
    return found


def written(*folders: Path) -> str:
    """The page of a run; others beside it. Without the picture, which takes most of the time."""
    runs = [read_run(folder) for folder in folders]
    return as_html(title_of(runs), sections(runs))


class Page(HTMLParser):
    """What a page holds: tags with their attributes, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.begun = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "wbr":  # the word goes on
            self.begun = self.words.pop()
        else:
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.inside[-1:]):
            self.words.append(self.begun + data)
            self.begun = ""

    @property
    def text(self) -> str:
        return "\n".join(self.words)


@pytest.fixture(scope="module")
def trained(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was really trained, and its report really written."""
    runs = tmp_path_factory.mktemp("trained")
    common = (f"data.path={corpus_folder}", f"paths.runs={runs}", "run_name=r1")
    command("xlm_train.commands.train", "experiment=smoke", *common, "trainer.max_steps=20")
    return runs / "r1"


def test_the_report_of_a_real_run(trained: Path, corpus_folder: Path) -> None:
    (trained / "report.html").unlink()
    told = command("xlm_train.commands.report", "run_name=r1", f"paths.runs={trained.parent}").stdout
    assert told.split() == [str(trained / "report.html"), str(trained / "report.md")]
    assert (trained / "plots/curves.png").read_bytes().startswith(b"\x89PNG")
    html_page, markdown = (trained / "report.html").read_text(), (trained / "report.md").read_text()

    from xlm_train.runtime import checkpoint_file

    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = [line for line in metrics if "val/ppl" in line][-1]
    newest = checkpoint_file.load(trained / "checkpoints/step-00000020.pt")
    manifest = json.loads((corpus_folder / "manifest.json").read_text())
    shape = ModelShape(**newest["shape"])
    padding = (shape.n_rows - shape.n_words) * (shape.dim + 1)  # rows of the vocabulary's matrix and its bias
    count = f"{sum(tensor.numel() for tensor in newest['model'].values()) - padding:,}"
    for text in (Page(html_page).text, markdown):
        assert "finished after 20 steps, 20 updates" in text
        assert f"{best['val/ppl_de']:,.4g}" in text
        assert newest["sha256"] in text
        assert manifest["lineage"] in text
        assert count in text
        assert f"differs: {manifest['vocabulary']['entries']:,}" in text
        assert "none: trained from random weights" in text
    assert "![curves](plots/curves.png)" in markdown


@pytest.mark.parametrize("others", [0, 2])
def test_nothing_leaves_the_page(make_run: Callable[..., Path], others: int) -> None:
    metrics = lines_of(200, 5, validate=50)
    events = [{"step": 100, "time": 1.0, "event": "start", "changes": ["https://example.org/x.js"]}]
    text = written(*(make_run(f"r{n}", metrics, events=events) for n in range(others + 1)))
    parsed = Page(text)
    assert not {"iframe", "img", "object", "embed", "form", "audio", "video"} & {tag for tag, _ in parsed.tags}
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import|@font-face|fetch\(|XMLHttp|import\(|WebSocket", text)
    (policy,) = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_tables_and_figures_can_be_read_aloud(make_run: Callable[..., Path]) -> None:
    text = written(make_run("r", lines_of(200, 5, validate=50)))
    parsed = Page(text)
    assert all("scope" in attributes for tag, attributes in parsed.tags if tag == "th")
    identities = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    drawings = re.findall(r"<svg [^>]*role=.img.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 5  # loss, perplexity, learning rate, gradient norm, throughput; no loss scale in float32
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        named = [tree.find("title"), tree.find("desc")]
        assert tree.get("aria-labelledby", "").split() == [part.get("id") for part in named if part is not None]
        assert all(part is not None and part.text for part in named)


def test_names_and_values_are_text_not_markup(make_run: Callable[..., Path]) -> None:
    metrics = [{**line, f"val/loss_{HOSTILE}": 1.0} for line in lines_of(20, 5)]
    events = [{"step": 5, "time": 1.0, "event": HOSTILE, HOSTILE: HOSTILE}, {"step": 10, "event": "start"}]
    status = {"status": HOSTILE, "error": HOSTILE, "reason": HOSTILE}
    folder = make_run("r", metrics, events=events, status=status, run_name=HOSTILE)
    (folder / "environment.json").write_text(
        json.dumps({"command": [HOSTILE], "devices": [HOSTILE], "python": HOSTILE})
    )
    (folder / "energy.json").write_text(json.dumps({"energy_kwh": 1.0, "method": HOSTILE, "region": HOSTILE}))
    runs = [read_run(folder)]
    text = as_html(title_of(runs), sections(runs))
    assert "<script>alert" not in text
    assert [attributes for tag, attributes in Page(text).tags if tag == "script"].count({}) == 1  # ours
    assert Page(text).text.count(HOSTILE) > 8  # shown as it is
    for line in as_markdown(title_of(runs), sections(runs), "plots/curves.png").splitlines():
        assert not re.search(r"(?<!\\)<", line)
        if line.startswith("| "):
            assert re.search(r"(?<!\\)\|$", line)


def test_restarts_and_incidents_are_marked_where_they_happened(make_run: Callable[..., Path]) -> None:
    events = [{"step": step, "time": 1.0, "event": kind} for step, kind in ((0, "start"), (50, "start"), (75, "skip"))]
    events += [
        {"step": 150, "time": 1.0, "event": "rollback", "to": 140, "grad_norm": 65536.2},
        {"step": 150, "time": 1.0, "event": "bad_batch"},
        {"step": 160, "time": 1.0, "event": "busy_cores", "others": 1.6238755916848098},
    ]
    text = written(make_run("r", lines_of(200, 5), events=events))
    for drawing in re.findall(r"<svg [^>]*role=.img.*?</svg>", text, re.DOTALL):
        marks = re.findall(r'<path class="mark (\w+) k\d" d="M(\S+) ', drawing)
        assert sorted(marks) == [("bad_batch", "750"), ("rollback", "750"), ("skip", "375"), ("start", "250")]
        assert "restart: 1" in drawing
    assert {"to: 140; grad_norm: 65,500", "others: 1.62"} <= set(Page(text).words)


def test_what_is_of_all_languages_has_no_languages_colour(make_run: Callable[..., Path]) -> None:
    shown = {
        f.title: {curve.colour for curve in f.curves} for f in figures([read_run(make_run("r", lines_of(200, 5)))])
    }
    assert shown["Learning rate"] == shown["Throughput"] == {GREY}
    assert GREY not in shown["Loss"]


def test_long_curves_keep_their_lowest_and_highest() -> None:
    y = np.full(300_000, 3.0)
    y[123_456], y[200_001] = 50.0, 0.5
    points = reduce(np.arange(300_000), y, buckets=300)
    assert len(points.x) == 300
    assert (points.low.min(), points.high.max()) == (0.5, 50.0)
    assert points.x[np.argmax(points.high)] == pytest.approx(123_456, abs=1000)
    assert points.mean.mean() == pytest.approx(y.mean())
    short = reduce([3, 1, 2], [30, 10, 20])
    assert (short.x.tolist(), short.mean.tolist()) == ([1, 2, 3], [10, 20, 30])


def test_axes_have_round_ticks() -> None:
    assert Axis(0, 300_000).ticks() == [0, 100_000, 200_000, 300_000]
    assert Axis(2.9, 10.4).ticks() == [4, 6, 8, 10]
    assert Axis(0, 1.06e-4).ticks() == pytest.approx([0, 5e-5, 1e-4])
    assert Axis(25, 5000, log=True).ticks() == pytest.approx([30, 100, 300, 1000, 3000])
    assert Axis(40, 44, log=True).at(math.sqrt(40 * 44)) == pytest.approx(0.5)
    for low, high in ((1e-9, 1e9), (0.5, 0.51), (64, 65536 * 4), (1, 2)):
        assert 2 <= len(Axis(low, high, log=True).ticks()) <= 10
    written_as = {
        0: "0",
        1e-4: "1e-4",
        2.5e-5: "2.5e-5",
        0.25: "0.25",
        1500: "1,500",
        300_000: "300 k",
        65536: "65.54 k",
    }
    assert {value: number(value) for value in written_as} == written_as


def test_a_perplexity_that_falls_far_is_shown_whole(make_run: Callable[..., Path]) -> None:
    (perplexity,) = [f for f in figures([read_run(make_run("r", lines_of(200, 1)))]) if f.title == "Perplexity"]
    assert perplexity.up.log
    assert perplexity.up.low < math.exp(10 / math.sqrt(200)) < math.exp(10) < perplexity.up.high
    drawn = figure_html(perplexity, "x")
    assert "per token, logarithmic" in drawn
    assert f"highest {number(math.exp(10.05))}" in drawn
    line = re.search(r'<path class="line k0" d="M(\S.*?)"', drawn.split("role=")[1])
    assert line
    heights = [float(point.split()[1]) for point in line[1].split("L")]
    assert len(heights) == 200
    assert min(heights) >= 0
    assert max(heights) <= 1000


def test_metrics_and_settings_of_earlier_versions_are_read(make_run: Callable[..., Path]) -> None:
    metrics = [
        {"step": 5, "speed/share_of_peak": 0.25},
        {"step": 10, "speed/mfu": 0.5},
        {"step": 15, "speed/mfu": 0.75},
    ]
    folder = make_run("r", metrics)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["optimizer"] |= {"_target_": "xlm_train.optim.OriginalAdam"}
    config["schedule"] |= {"_target_": "xlm_train.schedule.inverse_sqrt"}
    del config["callbacks"]["preemption"]
    config["callbacks"]["interruption"] = {"every_n_steps": 7}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = read_run(folder)
    assert list(run.columns["speed/mfu"].values) == [0.25, 0.5, 0.75]
    assert run.setting("callbacks.preemption.every_n_steps") == 7
    compared = {point.name: point.compare(run) for point in recipe.POINTS}
    assert compared["optimizer"] == ("optimizer=original_adam", "same")
    assert compared["schedule"][0].startswith("schedule=inverse_sqrt")
    assert re.search(r"model FLOPs utilisation.*\n+50\.0%", Page(written(folder)).text)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_with_hardly_any_metrics(make_run: Callable[..., Path], count: int) -> None:
    status = {"status": "running", "time": "2026-01-01T00:00:00+0000"}
    folder = make_run("young", lines_of(20, 5)[:count], status=status)
    text = Page(written(folder)).text
    assert "Status: running" in text
    assert ("reported no metrics yet" in text) == (count == 0)
    assert ("Learning rate" in text) == (count > 0)
    write_report(folder)  # the picture too
    assert (folder / "plots/curves.png").is_file()


def test_a_failed_run_says_why(make_run: Callable[..., Path]) -> None:
    text = Page(written(make_run("r", [], status={"status": "failed", "error": "OSError: disk full"}))).text
    assert "Status: failed: OSError: disk full." in text
    assert "None was recorded." in text  # energy
    assert "No events were recorded" in text


def test_missing_and_damaged_files_are_named(make_run: Callable[..., Path]) -> None:
    folder = make_run("r", lines_of(20, 5))
    with open(folder / "metrics.jsonl", "r+b") as file:
        whole = file.read().splitlines(keepends=True)
        file.seek(0)
        file.truncate()
        file.write(whole[0] + b'{"step": 7, "tra\n' + b"[]\n" + b"".join(whole[1:]) + b'{"step": 25, "train/lo')
    (folder / "config.yaml").write_text("data: [1,\n  }")
    (folder / "environment.json").unlink()
    (folder / "energy.json").write_text("[1]")
    (folder / "checkpoints/step-00000010.pt").write_bytes(b"half a checkpoint" * 10)
    (folder / "checkpoints/best.pt").symlink_to("step-00000005.pt")
    text = Page(written(folder)).text
    for said in (
        "metrics.jsonl: 2 lines damaged and left out",
        "config.yaml: is damaged",
        "energy.json is damaged: it is not a JSON object",
        "best.pt points to step-00000005.pt, which is not there",
        "step-00000010.pt does not end as a checkpoint: it is damaged",
    ):
        assert said in text
    assert "unknown: not in the config" in text
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    empty = Page(written(folder)).text
    assert "config.yaml is not there" in empty
    assert "status.json is not there" in empty


def test_no_damage_stops_the_report(make_run: Callable[..., Path]) -> None:
    """Bytes changed, cut off and repeated, and values swapped for others, at random in every file."""
    events = [{"step": 10, "time": 1.0, "event": "start", "changes": ["a"]}, {"step": 12, "time": 2.0, "event": "skip"}]
    folder = make_run("r", lines_of(20, 5, validate=10), events=events)
    (folder / "energy.json").write_text(json.dumps({"energy_kwh": 1.0, "method": "m", "region": "DE"}))
    (folder / "evaluation.json").write_text(
        json.dumps({"split": "test", "languages": {"de": {"perplexity": 5.0}}, "mean": {}})
    )
    whole = {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    draw = random.Random(0)
    others = (b"null", b'"x"', b"[]", b"{}", b"-1", b"1e999", b"true", b"0", b"9" * 20)
    for _ in range(50):
        for file, content in whole.items():
            place = draw.randrange(len(content))
            value = draw.choice(list(re.finditer(rb'(?<=: )("[^"]*"|\[.*?\]|[\w./+-]+)', content)))
            damage = (
                content[:place],
                content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :],
                content[:place] + content[place // 2 :],
                content[: value.start()] + draw.choice(others) + content[value.end() :],
                content[: value.start()] + draw.choice(others) + content[value.end() :],
            )
            file.write_bytes(draw.choice(damage))
        runs = [read_run(folder), read_run(folder)]
        assert as_html(title_of(runs), sections(runs)).endswith("</html>\n")
        as_markdown(title_of(runs), sections(runs), "plots/curves.png")


def test_several_runs_side_by_side(make_run: Callable[..., Path]) -> None:
    metrics = lines_of(200, 5, validate=50)
    first, second = make_run("a", metrics), make_run("b", metrics, "optimizer.lr=3e-4", "seed=5")
    both = Page(written(first, second))
    labels = re.findall(r"(?m)^[ab], (?:training|validation)$", both.text)
    assert set(labels) == {"a, training", "a, validation", "b, training", "b, validation"}
    for language in ("de", "en"):
        assert f"Loss, {language}" in both.text
    assert re.search(r"optimizer\.lr\n+0\.001\n+0\.0003", both.text)
    assert re.search(r"\nseed\n+0\n+5", both.text)
    assert "run_name\n" not in both.text.split("Differences between the configs")[1].split("Lineage")[0]
    assert "drawn over the tokens" not in both.text


def test_runs_with_steps_of_different_sizes_compare_by_tokens(make_run: Callable[..., Path]) -> None:
    small = make_run("a", lines_of(200, 5, tokens=256))
    large = make_run("b", lines_of(100, 5, tokens=512), "data.slots=4")
    text = written(small, large)
    assert "drawn over the tokens read" in text
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', text)[0])
    assert data["x"] == "tokens"
    assert data["range"] == [0, 200 * 256]
    assert [curve["x"][-1] for curve in data["curves"]] == [200 * 256, 100 * 512]


def test_a_step_of_sentence_batches_has_the_tokens_that_were_reported(make_run: Callable[..., Path]) -> None:
    folder = make_run("a", lines_of(20, 5, tokens=3990), "objective=tlm", "data.tokens_per_slot=2000")
    assert read_run(folder).tokens_per_step == 3990
    assert "2 slots with batches of sentences, on average 3,990, " in written(folder)
    windows = make_run("b", lines_of(20, 5, tokens=256))
    assert "2 slots x 4 streams x 32 = 256, " in written(windows)


def test_the_shipped_experiment_is_the_recipe_but_for_what_is_said(make_run: Callable[..., Path]) -> None:
    def verdicts(folder: Path) -> dict[str, str]:
        run = read_run(folder)
        return {point.name.partition(" (")[0]: point.compare(run)[1] for point in recipe.POINTS}

    published = make_run("paper", [], "experiment=clm_ende_1024")
    (published / "environment.json").write_text(json.dumps({"devices": ["Tesla V100-SXM2-32GB"] * 8}))
    found = verdicts(published)
    assert {name for name, verdict in found.items() if verdict == "differs"} == {
        "choice of language",
        "optimizer",
        "seed",
    }
    no_corpus = {"parameters", "languages", "vocabulary, entries", "BPE codes", "letters", "training text"}
    assert {name for name, verdict in found.items() if verdict == "unknown"} == {*no_corpus, "length"}
    exact = make_run("exact", [], "experiment=clm_ende_1024", "optimizer=original_adam", "data.slots=128")
    found = verdicts(exact)
    assert found["optimizer"] == "same"
    assert (found["tokens an update"], found["evaluation"]) == ("differs", "differs")
    assert (found["schedule"], found["Adam's betas"], found["warm-up, updates"]) == ("same", "same", "same")
    warmup = verdicts(make_run("warmup", [], "experiment=clm_ende_1024_warmup"))
    assert (warmup["schedule"], warmup["Adam's betas"], warmup["warm-up, updates"]) == ("differs", "differs", "differs")
    readme = make_run("readme", [], "experiment=clm_ende_1024_32streams")
    assert verdicts(readme)["evaluation"] == "same"  # as many tokens
    page = written(published)
    assert page.count(recipe.COMMAND) > 10
    sources = {point.name.partition(" (")[0]: point.source for point in recipe.POINTS}
    assert (sources["learning rate"], sources["Adam's betas"], sources["precision"]) == (
        recipe.COMMAND,
        recipe.CODE,
        recipe.PAPER,
    )
    assert recipe.TOKENS_PER_UPDATE == 1_048_576


def test_the_best_validation_is_the_monitor_s(make_run: Callable[..., Path]) -> None:
    metrics = lines_of(20, 5, validate=5)
    for line in metrics:
        if "val/acc" in line:
            line["val/acc"] = {5: 20.0, 10: 40.0, 15: 30.0, 20: 10.0}[line["step"]]
    assert read_run(make_run("ppl", metrics)).best_step == 20  # the loss falls
    by_accuracy = make_run("acc", metrics, "callbacks.validation.monitor=val/acc")
    assert read_run(by_accuracy).best_step == 10
    page = written(by_accuracy)
    assert "at step 10 (by val/acc: 40)" in page
    assert "40 (best)" in page


def test_scores_baselines_and_texts_found_beside_the_run(make_run: Callable[..., Path]) -> None:
    """As `make demo` leaves them after the training, and writes the report again."""
    folder = make_run("r", lines_of(20, 5, validate=10))
    scores = {"perplexity": 98.76, "accuracy": 21.0, "unigram_perplexity": 432.1, "bigram_perplexity": 210.9}
    result = {"split": "test", "checkpoint": {"step": 20}, "languages": {"de": scores, "en": {"perplexity": 87.65}}}
    (folder / "evaluation.json").write_text(json.dumps(result))
    text = Page(written(folder)).text
    assert re.search(
        r"unigram's perplexity\n+bigram's perplexity\n+test\n+20\n+de\n+98\.76\n+21\n+-\n+432\.1\n+210\.9\n", text
    )
    assert "Samples" not in text
    for language in ("de", "en"):
        line = {"prompt": f"<{language}>", "language": language, "text": f"<{language}> and more", "tokens": [1]}
        (folder / f"generated.{language}.jsonl").write_text(json.dumps(line) + "\n[]\n")
    text = Page(written(folder)).text
    assert re.search(
        r"Samples\n+Texts continued by xlm-generate\n+language\n+prompt\n+text\n+de\n+<de>\n+<de> and more\n", text
    )
    assert "<en> and more" in text
    assert "generated.en.jsonl: 1 line damaged and left out" in text


def test_a_run_that_was_moved_tells_as_much(trained: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """To where there is neither its corpus nor the checkpoint that it began with."""

    def told(folder: Path) -> str:
        text = Page(written(folder)).text
        return text[: text.index("Written ")]

    before = told(trained)
    manifest = json.loads((corpus_folder / "manifest.json").read_text())
    assert f"{manifest['vocabulary']['entries']:,}" in before
    moved = tmp_path / "elsewhere" / trained.name
    shutil.copytree(trained, moved, symlinks=True)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(corpus_folder), "/not/here"))
    assert told(moved).replace(str(corpus_folder), "/not/here") == before.replace(str(corpus_folder), "/not/here")


def test_the_parent_is_known_without_its_file(make_run: Callable[..., Path]) -> None:
    events = [{"step": 0, "event": "start", "parents": ["aaaa", "bbbb"]}, {"step": 10, "event": "start", "parents": []}]
    text = written(make_run("r", lines_of(20, 5), "init_from=/not/here.pt", events=events))
    assert "/not/here.pt, content sha256 bbbb" in text


def test_bars_stand_on_the_axis_and_say_their_values() -> None:
    bars = Curve("sentences", [0, 5, 10], [2, 8, 4], bars=5)
    drawn = figure_html(Figure("train.de", "sentences", [bars], x_axis=Axis(0, 15), from_zero=True), "x")
    path = re.search(r'<path class="bars k0" d="(.*?)"', drawn)
    assert path
    sides = re.findall(r"M(\S+) 1000V(\S+)H(\S+)V1000Z", path[1])
    assert [(float(left), float(right)) for left, _, right in sides] == [(0, 300), (333.3, 633.3), (666.7, 966.7)]
    top = 8 * 1.06  # of the axis
    assert [float(height) for _, height, _ in sides] == pytest.approx(
        [1000 * (1 - y / top) for y in (2, 8, 4)], abs=0.1
    )


def test_the_readout_knows_logarithmic_axes_and_words() -> None:
    """Its values as JSON: small ones are not rounded away, and words stand for their places."""
    rates = Curve("each job", [1e-4, 3.14159e-4, 1e-2], [30, 20, 25])
    figure = Figure("t", "", [rates], x_axis=Axis(1e-4, 1e-2, log=True), x_ticks=[(1e-4, "low"), (1e-2, "high")])
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', figure_html(figure, "x"))[0])
    assert data["curves"][0]["x"] == [1e-4, 3.142e-4, 1e-2]
    assert (data["log"], data["names"]) == (True, [[1e-4, "low"], [1e-2, "high"]])


def test_the_published_size_follows_from_the_recipe(make_run: Callable[..., Path], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    manifest = {"lineage": "c0ffee", "languages": {"de": 0, "en": 1}, "vocabulary": {"entries": recipe.N_WORDS}}
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    folder = make_run("r", [], "experiment=clm_ende_1024", f"data.path={corpus}")
    assert recipe.n_parameters(read_run(folder)) == recipe.N_PARAMETERS
    (corpus / "manifest.json").write_text(json.dumps({**manifest, "lineage": "another"}))
    assert recipe.n_parameters(read_run(folder)) is None


def test_a_long_run_gives_a_small_page(make_run: Callable[..., Path]) -> None:
    events = [{"step": step, "time": 1.0, "event": "skip"} for step in range(0, 300_000, 7)]
    folder = make_run("long", lines_of(300_000, 10, validate=500), events=events)
    text = written(folder)
    assert len(text) < 1_000_000
    assert thinned(range(0, 1000, 10), 10, keep=[555])[-1] == 990
    assert 555 in thinned(range(0, 1000, 5), 10, keep=[555])


def test_runs_that_are_not_there(make_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = make_run("first", []).parent
    make_run("nested/second", [])
    assert find_runs(runs, ["first", "nested/second"]) == [runs / "first", runs / "nested/second"]
    with pytest.raises(UserError) as caught:
        find_runs(runs, ["frist", "second"])
    assert "run_name=frist" in caught.value.problems[0]
    assert "did you mean first" in caught.value.problems[0]
    assert "compare=second" in caught.value.problems[1]
    assert "nested/second" in caught.value.problems[1]
    with pytest.raises(UserError, match="compare=first: is named twice"):
        find_runs(runs, ["first", "first"])
    with pytest.raises(UserError, match="there is no such folder"):
        find_runs(tmp_path / "none", ["first"])


def test_the_command_says_mistakes_plainly(make_run: Callable[..., Path]) -> None:
    runs = make_run("first", []).parent
    result = command("xlm_train.commands.report", "run_name=fisrt", f"paths.runs={runs}", status=2)
    assert "did you mean first?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (runs / "fisrt").exists()


def test_colours_have_contrast_in_light_and_dark() -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for what is drawn."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    style = (Path(page.__file__).parent / "page.css").read_text()
    modes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(modes) == 2
    for number_of_mode, colours in enumerate(modes):
        for name in ("text", "muted", "good", "bad"):
            assert contrast(colours[name], colours["back"]) >= 4.5, (number_of_mode, name)
        assert contrast(colours["text"], colours["raised"]) >= 4.5
        assert contrast(colours["warned-text"], colours["warned"]) >= 4.5
        for pair in page.PALETTE:
            assert contrast(pair[number_of_mode], colours["back"]) >= 3, pair
    report = (Path(page.__file__).parent / "report.css").read_text()
    assert all(f".k{n} {{ stroke: var(--c{n}) }}" in report for n in range(len(page.PALETTE)))


def test_markdown_cells_stay_cells() -> None:
    table = page.Table("", ["a|b", "c"], [["x\ny", page.Cell("*1*", "good")]])
    assert table.markdown() == "| a\\|b | c |\n| --- | ---: |\n| x y | \\*1\\* |"
    words = page.Table("T", [], [["x", "y"], ["long", "z"]], words=True, note="n")
    assert words.markdown() == "T:\n\n|  |  |\n| --- | --- |\n| x | y |\n| long | z |\n\nn"
    assert words.text() == "x     y\nlong  z\nn"
    assert page.Table("", ["a", "bcd"], [["xyz", "1"]]).text() == "a    bcd\nxyz    1"
