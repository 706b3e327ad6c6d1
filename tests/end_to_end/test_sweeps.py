"""Sweeps: `xlm-train -m` with every launcher, jobs that fail, sweeps that are interrupted, what they leave behind."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import unquote

import pytest
from omegaconf import OmegaConf

from tests.conftest import PATIENCE, command, process_environment
from xlm_train.commands import sweep
from xlm_train.commands.sweep import best_score, sweep_of
from xlm_train.config.overrides import config_folder
from xlm_train.config.train import problems_of
from xlm_train.report import sweep as sweep_table
from xlm_train.report import sweep_figures
from xlm_train.report.png import draw
from xlm_train.report.sweep_rows import Row
from xlm_train.runtime.errors import ConfigError
from xlm_train.training.loggers import read_metrics

PNG = b"\x89PNG\r\n"
SHORT = ["trainer.max_steps=2", "callbacks.metrics.every_n_steps=1"]
DIVERGING = ["trainer.max_steps=4", "schedule.warmup_updates=1"]  # at a rate of 1e30


@pytest.fixture
def words(corpus_folder: Path, tmp_path: Path) -> list[str]:
    return ["-m", "experiment=smoke", f"data.path={corpus_folder}", f"paths.runs={tmp_path}", "run_name=sweep"]


def jobs_of(runs: Path, name: str = "sweep") -> dict[str, dict[str, Any]]:
    """What sweep.json says of each job, by the name of its run."""
    return {job["run"]: job for job in json.loads((runs / "sweeps" / name / "sweep.json").read_text())["jobs"]}


def status_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failing_job_leaves_its_reason_and_the_others_run(words: list[str], tmp_path: Path) -> None:
    result = command("xlm_train.commands.train", *words, *DIVERGING, "optimizer.lr=1e-3,1e30,2e-3", status=2)
    for rate in ("0.001", "0.002"):
        run = tmp_path / f"sweep,optimizer.lr={rate}"
        assert status_of(run)["status"] == "finished"
        assert not (run / "traceback.txt").exists()
    failed = tmp_path / "sweep,optimizer.lr=1e+30"
    assert status_of(failed)["status"] == "failed"
    assert "diverged" in status_of(failed)["problems"][0]
    assert "diverged" in (failed / "traceback.txt").read_text()
    assert "Traceback" not in result.stderr

    jobs = jobs_of(tmp_path)
    assert {name: job["status"] for name, job in jobs.items()} == {
        "sweep,optimizer.lr=0.001": "finished",
        "sweep,optimizer.lr=1e+30": "failed",
        "sweep,optimizer.lr=0.002": "finished",
    }
    for rate in ("0.001", "0.002"):
        job = jobs[f"sweep,optimizer.lr={rate}"]
        last = [line for line in read_metrics(tmp_path / job["run"] / "metrics.jsonl") if "val/ppl" in line][-1]
        assert (job["steps"], job["best_step"], job["varied"]) == (4, 4, {"optimizer.lr": rate})
        assert job["perplexity"] == last["val/ppl"]
        assert job["perplexities"] == {"de": last["val/ppl_de"], "en": last["val/ppl_en"]}
    folder = tmp_path / "sweeps/sweep"
    assert (folder / "sweep.png").read_bytes().startswith(PNG)
    assert result.stdout.splitlines()[0].split()[:2] == ["optimizer.lr", "status"]
    assert f"{jobs['sweep,optimizer.lr=0.002']['perplexity']:,.5g}" in (folder / "table.md").read_text()
    assert links_of(folder) == {str(tmp_path / f"sweep,optimizer.lr={rate}/report.html") for rate in ("0.001", "0.002")}

    moved = tmp_path.with_name(f"{tmp_path.name}_moved")
    tmp_path.rename(moved)
    start = json.loads((moved / "sweeps/sweep/start.json").read_text())["start"]
    sweep_table.conclude(moved / "sweeps/sweep", start)
    assert jobs_of(moved) == jobs
    assert len(links_of(moved / "sweeps/sweep")) == 2


def links_of(folder: Path) -> set[str]:
    """Files that a sweep's page links to."""
    found = re.findall(r'<a href="(.*?)"', (folder / "sweep.html").read_text())
    files = {(folder / unquote(unescape(link))).resolve() for link in found}
    assert all(file.is_file() for file in files)
    return {str(file) for file in files}


@pytest.mark.slow
def test_a_failed_job_is_run_again_alone(words: list[str], tmp_path: Path) -> None:
    """By the command that the sweep prints, here with the mistake fixed: the job's own folder, and no other."""
    command("xlm_train.commands.train", *words, *DIVERGING, "optimizer.lr=1e-3,1e30", status=2)
    before = files_of(tmp_path / "sweep,optimizer.lr=0.001")
    alone = shlex.split(jobs_of(tmp_path)["sweep,optimizer.lr=1e+30"]["command"])
    assert alone[0] == "xlm-train"
    command("xlm_train.commands.train", *alone[1:], "optimizer.lr=1e-4")
    failed = tmp_path / "sweep,optimizer.lr=1e+30"
    assert status_of(failed)["status"] == "finished"
    assert not (failed / "traceback.txt").exists()
    assert files_of(tmp_path / "sweep,optimizer.lr=0.001") == before


@pytest.mark.slow
def test_a_signal_stops_the_sweep_and_the_same_command_goes_on(words: list[str], tmp_path: Path) -> None:
    words = [*words, "trainer.max_steps=60", "seed=1,2,3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xlm_train.commands.train", *words], env=process_environment(), stderr=subprocess.DEVNULL
    )
    first, second, third = (tmp_path / f"sweep,seed={seed}" for seed in (1, 2, 3))
    deadline = time.monotonic() + PATIENCE
    while not any(line["step"] >= 10 for line in read_metrics(second / "metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    assert [status_of(run)["status"] for run in (first, second)] == ["finished", "preempted"]
    assert not third.exists()
    assert [job["status"] for job in jobs_of(tmp_path).values()] == ["finished", "preempted", "not started"]

    before = files_of(first)
    command("xlm_train.commands.train", *words)
    assert files_of(first) == before  # a finished job is left alone
    assert [status_of(run)["status"] for run in (first, second, third)] == ["finished"] * 3
    assert {job["steps"] for job in jobs_of(tmp_path).values()} == {60}


SEARCH = ["hparams_search=optuna", "hydra.sweeper.n_trials=3", "data.slots=2", *SHORT]


def test_a_search_minimises_the_validation_perplexity(words: list[str], tmp_path: Path) -> None:
    rates = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
    command("xlm_train.commands.train", *words, *SEARCH, rates, "schedule.warmup_updates=choice(1,2)")
    jobs = jobs_of(tmp_path)
    assert len(jobs) == 3
    assert {job["status"] for job in jobs.values()} == {"finished"}
    assert all(1e-4 <= float(job["varied"]["optimizer.lr"]) <= 1e-1 for job in jobs.values())
    best = min(jobs.values(), key=lambda job: job["perplexity"])
    text = (tmp_path / "sweeps/sweep/optimization_results.yaml").read_text()
    assert f"best_value: {best['perplexity']}" in text
    assert f"optimizer.lr: {best['varied']['optimizer.lr']}" in text


@pytest.mark.slow
def test_a_search_started_again_goes_on(words: list[str], tmp_path: Path) -> None:
    """Two jobs more than the first time: the same first three are asked for, found finished, and left alone."""
    command("xlm_train.commands.train", *words, *SEARCH)
    before = {name: files_of(tmp_path / name) for name in jobs_of(tmp_path)}
    command("xlm_train.commands.train", *words, *SEARCH, "hydra.sweeper.n_trials=5")
    assert len(jobs_of(tmp_path)) == 5
    assert {name: files_of(tmp_path / name) for name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_in_other_processes(launcher: str, words: list[str], tmp_path: Path) -> None:
    result = command(
        "xlm_train.commands.train", *words, *SHORT, "model.dropout=0.1,7,0.2", f"hydra/launcher={launcher}", status=2
    )
    assert [job["status"] for job in jobs_of(tmp_path).values()] == ["finished", "failed", "finished"]
    assert status_of(tmp_path / "sweep,model.dropout=7")["problems"] == ["model.dropout=7 must be in [0, 1)"]
    assert "2 of 3 jobs are done, 1 failed" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_signal_reaches_jobs_in_other_processes(launcher: str, words: list[str], tmp_path: Path) -> None:
    words = [*words, "trainer.max_steps=100000", "seed=1,2,3", f"hydra/launcher={launcher}"]
    words += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "xlm_train.commands.train", *words], env=process_environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + PATIENCE
    while not read_metrics(tmp_path / "sweep,seed=1/metrics.jsonl"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    statuses = [job["status"] for job in jobs_of(tmp_path).values()]
    assert statuses[0] == "preempted"
    assert set(statuses) <= {"preempted", "not started"}
    assert len(statuses) == 3


@pytest.mark.slow
def test_two_processes_a_job(words: list[str], tmp_path: Path) -> None:
    """Each job is one start of two processes that read one frozen config; the second diverges and leaves its traceback."""
    extra = ["trainer.max_steps=4", "trainer.devices=2", "optimizer.lr=1e-3,1e30", "schedule.warmup_updates=1"]
    command("xlm_train.commands.train", *words, *extra, status=2)
    good, bad = tmp_path / "sweep,optimizer.lr=0.001", tmp_path / "sweep,optimizer.lr=1e+30"
    assert [job["status"] for job in jobs_of(tmp_path).values()] == ["finished", "failed"]
    for run, rate in ((good, "lr: 0.001"), (bad, "lr: 1.0e+30")):
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        assert [event["processes"] for event in events if event["event"] == "start"] == [2]
        frozen = (run / "launch.yaml").read_text()
        assert rate in frozen
        assert f"run_name: {run.name}" in frozen
    assert "diverged" in (bad / "traceback.txt").read_text()
    assert "diverged" in jobs_of(tmp_path)[bad.name]["problems"][0]


@pytest.mark.slow
def test_a_run_under_the_job_s_name_is_not_touched(words: list[str], tmp_path: Path) -> None:
    """A sweep that would go on with other runs' folders is refused, and they stay what they are."""
    command("xlm_train.commands.train", *words, *SHORT, "seed=1,2")
    before = files_of(tmp_path / "sweep,seed=1")
    result = command("xlm_train.commands.train", *words, *SHORT, "seed=1,2", "optimizer.lr=5e-3", status=2)
    assert "optimizer.lr: was 0.001, now 0.005" in result.stderr
    assert files_of(tmp_path / "sweep,seed=1") == before


@pytest.fixture
def own_searches(tmp_path: Path) -> Path:
    """A user's folder of configs with two searches."""
    folder = tmp_path / "mine/hparams_search"
    folder.mkdir(parents=True)
    for name, params in (("rates", "{optimizer.lr: '1e-4,1e-3'}"), ("wrong", "{seed: choice(1}")):
        text = f"# @package _global_\nhydra: {{sweeper: {{params: {params}}}}}\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder.parent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run_name=a,b"], "run_name=a,b: one sweep has one run_name"),
        (["run_name=x", "paths.runs=a,b"], "paths.runs=a,b: one sweep has one paths.runs"),
        (["seed=1,2"], "run_name has no value: give run_name=..."),
        (
            ["run_name=x", "paths.runs=s3://b/runs", "seed=1,2"],
            "paths.runs=FOLDER storage.url=s3://b/runs mirrors its runs",
        ),
        (["run_name='a b'", "seed=1,2"], "run_name='a b': use letters"),
        (["run_name=x", "hydra/launcher=nowhere"], "hydra/launcher/nowhere"),
        (["run_name=x", "hydra/launcher=slurm", "seed=1,2"], "hydra/launcher=slurm: there is no srun on this machine"),
        (["run_name=x", "hydra/launcher=basic,joblib"], "what is Hydra's own cannot vary"),
        (["run_name=x", "hparams_search=wrong"], "hydra.sweeper.params: seed=choice(1: not a valid"),
        (
            ["run_name=x", "optimizer.lr=interval(1e-4,1e-3)"],
            "only a search draws from an interval: hparams_search=optuna",
        ),
    ],
)
def test_mistakes_are_found_before_any_job(arguments: list[str], message: str, own_searches: Path) -> None:
    with pytest.raises(ConfigError) as error:
        sweep_of("train", ["-m", "--config-dir", str(own_searches), *arguments])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "varied",
    [
        ["seed=1,2,3"],
        ["optimizer=glob(*)"],
        ["hparams_search=rates"],
        ["hparams_search=optuna", "optimizer.lr=interval(1e-4,1e-3)"],
    ],
)
def test_every_job_is_checked_before_the_first_and_a_mistake_told_once(
    varied: list[str], corpus_folder: Path, own_searches: Path
) -> None:
    words = ["-m", "--config-dir", str(own_searches), "experiment=smoke", f"data.path={corpus_folder}", "run_name=x"]
    words += varied
    sweep_of("train", words)
    with pytest.raises(ConfigError) as error:
        sweep_of("train", [*words, "+optimzer.lr=3", "data.slots=2,0", "model.dropout=0.1,7"])
    assert len(error.value.problems) == 3
    for part in ("did you mean optimizer", "data.slots=0: must be at least 1", "model.dropout=7 must be in [0, 1)"):
        assert part in " ".join(error.value.problems)


def test_the_corpus_and_the_names_of_jobs_are_checked_too(corpus_folder: Path) -> None:
    words = ["-m", "experiment=smoke", f"data.path={corpus_folder}", "run_name=x"]
    with pytest.raises(ConfigError, match=r"prepare it with it: xlm-prep"):
        sweep_of("train", [*words, "objective=clm,tlm"])
    with pytest.raises(ConfigError, match=r"run_name=x,cluster\.name=b+: has 265 bytes"):
        sweep_of("train", [*words, f"cluster.name=a,{'b' * 250}"])


@pytest.mark.parametrize(
    ("word", "extra"),
    [("hydra/launcher=joblib", "sweep"), ("hydra/launcher=slurm", "sweep"), ("hparams_search=optuna", "optuna")],
)
def test_a_plugin_that_is_not_installed_is_named(word: str, extra: str) -> None:
    program = "import sys; sys.modules['hydra_plugins'] = None; from xlm_train.commands.train import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "-m", "run_name=x", "seed=1,2", word],
        capture_output=True, text=True, env=process_environment(), timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert f"pip install 'xlm_train[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_shared_does_not_name_the_jobs(corpus_folder: Path) -> None:
    words = [
        "-m",
        "experiment=smoke",
        f"data.path={corpus_folder}",
        "run_name=x",
        "hparams_search=lr_warmup_batch",
        "seed=1,2",
        "hydra/launcher=basic",
    ]
    sweep = sweep_of("train", [*words, "--config-dir", "mine"])
    assert sweep.folder == Path("runs/sweeps/x")
    assert sweep.constant == ("experiment", "data.path", "run_name", "hparams_search")
    assert sweep.flags == ("--config-dir", "mine")


def test_every_job_of_the_shipped_sweep_can_run(tmp_path: Path) -> None:
    import hydra
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = ["experiment=smoke", "run_name=x", f"data.path={tmp_path}", "hparams_search=lr_warmup_batch"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        params = hydra.compose("train", words, return_hydra_config=True).hydra.sweeper.params
        lists = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
        jobs = BasicSweeper.split_arguments(lists, None)[0]
        assert len(jobs) == 12
        for job in jobs:
            config = hydra.compose("train", [*words, *job])
            assert problems_of(config) == []
            assert f"optimizer.lr={config.optimizer.lr}" in job
            assert config.trainer.max_tokens == 10**10


def test_slurm_gives_a_job_the_devices_it_trains_on() -> None:
    import hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        words = ["run_name=x", "hydra/launcher=slurm", "trainer.devices=4"]
        launcher = hydra.compose("train", words, return_hydra_config=True).hydra.launcher
    assert (launcher.gpus_per_node, launcher.tasks_per_node, launcher.nodes) == (4, 1, 1)
    assert launcher._target_.endswith("SlurmLauncher")


def test_a_run_without_validation_is_the_worst(tmp_path: Path) -> None:
    assert best_score(tmp_path) == math.inf
    lines = [
        {"step": 1, "val/ppl": 9.0},
        {"step": 2, "train/loss": 0.1},
        {"step": 3, "val/ppl": 7.5},
        {"step": 4, "val/ppl": 8.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert best_score(tmp_path) == 7.5


def test_a_search_goes_by_what_the_runs_monitor(tmp_path: Path) -> None:
    lines = [{"step": step, "val/ppl": ppl, "val/bleu": bleu} for step, ppl, bleu in ((1, 50.0, 1.0), (2, 90.0, 9.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text("callbacks: {validation: {monitor: val/bleu}}\n")
    assert best_score(tmp_path) == -9.0


def row(perplexity: float | None, **varied: str) -> Row:
    each = {} if perplexity is None else {"de": perplexity + 1, "en": perplexity - 1}
    status = "failed" if perplexity is None else "finished"
    best = ("val/ppl", 10, perplexity)
    return Row("run", varied, status, [], "xlm-train", 10, *best, perplexity, each, None, {}, 3.0, 1e4, 0.5)


def test_the_table_begins_with_the_best_job() -> None:
    rows = [row(30.0, lr="1e-4"), row(None, lr="1e-1"), row(20.0, lr="0.00023456789")]
    table = sweep_table.table(rows)
    assert [table.head[0], *(line[0] for line in table.rows)] == ["lr", "0.0002346", "1e-4", "1e-1"]
    assert table.rows[0][1:] == ["finished", "10", "10", "20", "21", "19", "3", "10,000", "0.5"]


def test_what_is_no_record_of_a_job_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = tmp_path / "sweep/jobs"
    jobs.mkdir(parents=True)
    (jobs / "folder.json").mkdir()
    for name, text in (("list.json", "[1]"), ("empty.json", ""), ("other.json", '{"start": "s"}')):
        (jobs / name).write_text(text)
    record = {"start": "s", "job": 0, "varied": {"lr": "1"}, "run": "../run", "command": "xlm-train"}
    (jobs / "lr=1.json").write_text(json.dumps({**record, "status": "finished", "exit_status": 0}))
    assert sweep_table.conclude(tmp_path / "sweep", "s") == [0]
    told = capsys.readouterr().err
    assert all(
        f"{name}: is no record of a job" in told for name in ("folder.json", "list.json", "empty.json", "other.json")
    )
    assert [job["run"] for job in json.loads((tmp_path / "sweep/sweep.json").read_text())["jobs"]] == ["run"]


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_status_is_kept(tmp_path: Path, text: str) -> None:
    def fails(_: object) -> int:
        raise ConfigError("status.json: is damaged")

    (tmp_path / "status.json").write_text(text)
    outcome = sweep._outcome(fails, OmegaConf.create(), tmp_path)
    assert outcome == {"status": "failed", "exit_status": 2, "problems": ["status.json: is damaged"]}
    assert (tmp_path / "status.json").read_text() == text


def test_jobs_are_compared_by_what_they_monitor() -> None:
    worse, better = row(20.0, seed="1"), row(30.0, seed="2")
    by = {"monitor": "val/bleu"}
    rows = [replace(worse, bleu=5.0, bleus={"de-en": 4.0, "en-de": 6.0}, best=5.0, **by)]
    rows.append(replace(better, bleu=9.0, bleus={"de-en": 8.0, "en-de": 10.0}, best=9.0, **by))
    table = sweep_table.table(rows)
    assert table.head[4:9] == ["val/bleu", "val/bleu_de-en", "val/bleu_en-de", "val/ppl", "val/ppl_de"]
    assert [line[4:8] for line in table.rows] == [["9", "8", "10", "30"], ["5", "4", "6", "20"]]
    rates = [replace(one, varied={"lr": rate, "seed": "1"}) for one, rate in zip(rows, ("1e-4", "1e-3"), strict=True)]
    again = [replace(one, varied={**one.varied, "seed": "2"}, bleu=1.0) for one in rates]
    lost = replace(
        rates[0], varied={"lr": "1", "seed": "1"}, status="failed", monitor="val/ppl", best=None, perplexity=None
    )
    lost = replace(lost, bleu=None, bleus={}, perplexities={})
    (figure,) = sweep_figures.figures([*rates, *again, lost])
    assert len(figure.marks) == 1
    assert figure.title == "Best validation BLEU"
    assert {curve.label: sorted(curve.y) for curve in figure.curves} == {
        "mean": [3.0, 5.0],
        "de-en": [4.0, 8.0],
        "en-de": [6.0, 10.0],
        "each seed": [1.0, 1.0, 5.0, 9.0],
    }
    many = [replace(one, varied={"a": str(n), "b": "1", "c": "2"}) for n, one in enumerate([*rows, rows[0]])]
    highest = sweep_figures.figures([replace(one, varied={**one.varied, "a": "1"}) for one in many])[0].curves[-1]
    assert highest.y == [9.0]


def test_seeds_show_mean_and_deviation() -> None:
    """Over jobs that differ by the seed alone and are done; the best mean first."""
    rows = [
        row(y, lr=lr, seed=str(n))
        for lr, ys in (("1e-3", [30, 33, 36]), ("1e-4", [20, 24, None]))
        for n, y in enumerate(ys)
    ]
    (table,) = sweep_table.seeds(rows)
    assert table.head == ["lr", "seeds", "val/ppl", "val/ppl_de", "val/ppl_en", "train/loss"]
    assert table.rows == [
        ["1e-4", "2 of 3", "22 ± 2.8", "23 ± 2.8", "21 ± 2.8", "3 ± 0"],
        ["1e-3", "3", "33 ± 3", "34 ± 3", "32 ± 3", "3 ± 0"],
    ]
    (table,) = sweep_table.seeds([row(y, lr="1", seed=str(n)) for n, y in enumerate((12_300, 12_600))])
    assert table.rows[0][2] == "12,450 ± 210"
    assert stdev([20, 24]) == pytest.approx(2.83, abs=0.01)
    assert sweep_table.seeds([row(30.0, lr="1"), row(20.0, lr="2")]) == []


def test_seeds_are_dots_around_their_mean() -> None:
    rows = [row(10.0 * n + seed, lr=f"1e-{n}", seed=str(seed)) for n in (1, 2) for seed in (0, 1, 5)]
    (figure,) = sweep_figures.figures(rows)
    curves = {curve.label: curve for curve in figure.curves}
    assert list(curves) == ["mean", "de", "en", "each seed"]
    assert dict(zip(curves["mean"].x, curves["mean"].y, strict=True)) == {
        0.1: mean([10, 11, 15]),
        0.01: mean([20, 21, 25]),
    }
    assert len(curves["each seed"].x) == 6
    assert not curves["each seed"].line
    (alone,) = sweep_figures.figures([row(10.0, seed="1"), row(11.0, seed="2")])
    assert not any(curve.line for curve in alone.curves)  # nothing lies between two seeds


@pytest.mark.parametrize("keys", [1, 2, 3])
def test_the_plot_of_one_key_and_of_several(keys: int, tmp_path: Path) -> None:
    names = ["optimizer.lr", "schedule", "data.slots"][:keys]
    rows = [
        row(None if rate == "1e-1" else 20.0 + number, **dict(zip(names, (rate, schedule, slots), strict=False)))
        for number, rate in enumerate(["1e-4", "1e-3", "1e-1"])
        for schedule in (["cosine", "constant"] if keys > 1 else [""])
        for slots in (["2", "4"] if keys > 2 else [""])
    ]
    figures = sweep_figures.figures(rows)
    labels = [[curve.label for curve in figure.curves] for figure in figures]
    assert (
        labels
        == {
            1: [["mean", "de", "en"]],
            2: [["schedule=constant", "schedule=cosine"]],
            3: [["each job", "best of each value"]] * 3,
        }[keys]
    )
    for figure in figures:
        curve = figure.curves[-1]
        assert len(curve.x) == len(curve.y) == 2
        assert len(figure.marks) == len(rows) // 3  # the jobs without a perplexity
    draw(figures, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(PNG)


def test_labels_of_a_search_do_not_overlap() -> None:
    """Rates that a search chose lie close together: then the axis has round ticks."""
    rows = [row(20.0 + n, **{"optimizer.lr": f"{rate:.17g}"}) for n, rate in enumerate([1e-4, 1.02e-4, 1.05e-4, 1e-2])]
    (figure,) = sweep_figures.figures(rows)
    assert [words for _, words in figure.labels_across] == ["1e-4", "1e-3", "0.01"]
    (figure,) = sweep_figures.figures([rows[0], rows[3]])
    assert [words for _, words in figure.labels_across] == ["0.0001", "0.01"]
