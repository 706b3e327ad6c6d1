"""docs/extending.md: its files and commands, as they stand there, outside of the repository."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, REPOSITORY, process_environment, text_files
from xlm_train.config.parts import REFUSED

DOCUMENT = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    return DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the documented files, a little text, the console commands in bin/."""
    folder = tmp_path_factory.mktemp("user")
    text_files(shared, folder, 600)
    (folder / "text.fr").write_bytes((folder / "text.de").read_bytes())  # any text will do
    for name, content in re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "bin").mkdir()
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        commands = tomllib.load(file)["project"]["scripts"]
    for name, target in commands.items():
        module, _, function = target.partition(":")
        script = folder / "bin" / name
        guarded = f'if __name__ == "__main__":\n    {function}()\n'  # worker processes import it again
        script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{guarded}")
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def follow(folder: Path) -> Callable[..., str]:
    """follow(heading, checkout): run the commands of a section; returns what they printed."""

    def followed(heading: str, checkout: Path = REPOSITORY) -> str:
        blocks = [block for kind, block in FENCED.findall(section(heading)) if kind == "bash"]
        assert blocks
        path = f"{folder / 'bin'}:/usr/bin:/bin"
        environment = process_environment(PATH=path, PYTHONPATH=str(checkout))
        commands = "".join(blocks).replace("PYTHONPATH=.", 'PYTHONPATH=".:$PYTHONPATH"')
        result = subprocess.run(
            ["bash", "-eu", "-c", commands],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    return followed


@pytest.fixture(scope="module")
def _corpus(follow: Callable[..., str]) -> None:
    follow("A third language")


def config_of(run: Path) -> str:
    return (run / "config.yaml").read_text()


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def status_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


@pytest.mark.slow
@pytest.mark.usefixtures("_corpus")
def test_a_third_language(folder: Path) -> None:
    assert {"val/ppl_de", "val/ppl_en", "val/ppl_fr", "val/ppl"} <= metrics_of(folder / "runs/three_languages")[
        -1
    ].keys()


@pytest.mark.slow
@pytest.mark.usefixtures("_corpus")
def test_another_optimizer(folder: Path, follow: Callable[..., str]) -> None:
    follow("Another optimizer")
    assert status_of(folder / "runs/nadam")["status"] == "finished"
    assert "_target_: torch.optim.NAdam" in config_of(folder / "runs/nadam")
    losses = [line["train/loss"] for line in metrics_of(folder / "runs/nadam") if "train/loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.usefixtures("_corpus")
def test_another_logger(folder: Path, follow: Callable[..., str]) -> None:
    follow("Another logger")
    (table,) = (folder / "runs/csv").rglob("metrics.csv")
    assert "train/loss" in table.read_text().splitlines()[0]
    assert metrics_of(folder / "runs/csv")[-1]["step"] == 20


@pytest.mark.slow
@pytest.mark.usefixtures("_corpus")
def test_another_callback(folder: Path, follow: Callable[..., str]) -> None:
    follow("Another callback")
    status = status_of(folder / "runs/callbacks")
    assert (status["status"], status["step"]) == ("stopped", 20)  # validations are 10 steps apart
    for run in ("callbacks", "one_more"):
        reports = [line for line in metrics_of(folder / f"runs/{run}") if "train/loss" in line]
        assert all(report["model/embedding_norm"] > 0 for report in reports)
        assert len({report["model/embedding_norm"] for report in reports}) == len(reports)
    assert (folder / "runs/one_more/checkpoints/best.pt").is_file()  # ours stay


@pytest.mark.slow
@pytest.mark.usefixtures("_corpus")
def test_a_new_objective(folder: Path, follow: Callable[..., str]) -> None:
    follow("A new objective")
    if not (folder / "runs/nadam").exists():  # the test of it has not run here
        follow("Another optimizer")
    reversed_, causal = metrics_of(folder / "runs/reversed"), metrics_of(folder / "runs/nadam")
    losses = [line["train/loss"] for line in reversed_]
    assert losses[-1] < losses[0]
    assert losses[0] != causal[0]["train/loss"]
    assert not any("val/ppl" in line for line in reversed_)
    assert status_of(folder / "runs/reversed")["status"] == "finished"


def changed_checkout(where: Path) -> Path:
    """A copy of the code with the documented change: in each hunk, what is there and what it becomes."""
    for name in ("xlm_train", "data_prep", "configs"):
        shutil.copytree(REPOSITORY / name, where / name, ignore=shutil.ignore_patterns("__pycache__"))
    (diff,) = [block for kind, block in FENCED.findall(section("Another normalisation")) if kind == "diff"]
    for name, hunks in re.findall(r"^--- (\S+)\n(.*?)(?=^---|\Z)", diff, re.MULTILINE | re.DOTALL):
        text = (where / name).read_text()
        for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(before) == 1, f"{name} no longer has, once:\n{before}"
            text = text.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
        (where / name).write_text(text)
    return where


@pytest.mark.slow
@pytest.mark.usefixtures("_corpus")
def test_another_normalisation(folder: Path, tmp_path: Path, follow: Callable[..., str]) -> None:
    changed = changed_checkout(tmp_path / "changed")
    follow("Another normalisation", changed)
    assert status_of(folder / "runs/rms")["status"] == "finished"
    assert "norm: rms" in config_of(folder / "runs/rms")

    def command(program: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [folder / "bin" / program, *overrides],
            cwd=folder,
            env=process_environment(PYTHONPATH=str(changed)),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    run = ["experiment=smoke", "data.path=corpus"]
    checkpoint = "checkpoint=runs/rms/checkpoints/best.pt"
    scored = command("xlm-eval", checkpoint, "data.path=corpus", "split=test")
    assert scored.returncode == 0, scored.stderr
    for form in ("hf", "xlm"):
        refused = command("xlm-export", checkpoint, "out=exported", f"format={form}")
        assert (refused.returncode, "know LayerNorm only" in refused.stderr) == (2, True), refused.stderr
    wrong = command("xlm-train", *run, "run_name=wrong", "model.norm=batch")
    assert (wrong.returncode, "model.norm=batch: must be one of layer, rms" in wrong.stderr) == (2, True)
    other = command("xlm-train", *run, "run_name=rms")
    assert (other.returncode, "model.norm: was rms, now layer" in other.stderr) == (2, True), other.stderr
    # a run from before the change goes on
    resumed = command("xlm-train", *run, "run_name=three_languages", "data.slots=3", "trainer.max_steps=25")
    assert resumed.returncode == 0, resumed.stderr
    assert "from step 20 of 25" in resumed.stderr


def test_the_refused_callbacks_are_those_named() -> None:
    table = section("What a Lightning user must know").split("Refused by name")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(REFUSED)
