"""The tutorials' commands, each run as it stands there but for the substitutions below, in order, in a folder of its own.

A command's exit status is the one that its comment states (`# exits 75`), else 0. A command of a program that is not in
PROGRAMS, a substitution that nothing needs, and a code block of another kind fail.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, REPOSITORY, process_environment, read_lines, text_files
from tests.launch.test_slurm import Slurm
from xlm_train.config.overrides import check_overrides, overrides_of

DOCUMENTS = ["student", "researcher", "engineer", "translation"]
COMMANDS = [
    "xlm-prep",
    "xlm-train",
    "xlm-eval",
    "xlm-generate",
    "xlm-translate",
    "xlm-export",
    "xlm-plan",
    "xlm-report",
]
PROGRAMS = [*COMMANDS, "make", ".", "ls", "cat", "head", "tail", "sbatch"]

# (pattern, replacement), one after the other on each command: the same chain of commands at a size of seconds
SUBSTITUTIONS = {
    "student": [
        ("^make demo$", f"make --dry-run -C '{REPOSITORY}' demo"),  # minutes; its text is given
        (r"^\. \.venv/bin/activate$", '. "$VENV/bin/activate"'),
        ("n_codes=2000", "n_codes=500"),
        (r"(?<=xlm-train) experiment=demo", " experiment=smoke"),
        ("max_hours=0.01", "max_hours=0.000001"),
        ("n_layers=2", "n_layers=1"),  # the small model has two
    ],
    "researcher": [
        (
            "corpus=news_crawl_ende raw=data/raw",
            "train.en=text.en train.de=text.de bpe.n_codes=500 holdout.sentences=50",
        ),
        ("experiment=mlm_tlm_ende_1024", "experiment=smoke objective=mlm_tlm data.max_len=62 data.tokens_per_slot=500"),
        ("experiment=mlm_ende_1024", "experiment=smoke objective=mlm"),
        (r"(?<=xlm-train)(.*) experiment=\w+(?!.*--cfg)", r"\1 experiment=smoke"),
        (r"max_steps=400000", "max_steps=25"),
        ("seed=0,1,2", "seed=0,1 trainer.max_steps=5"),
        (
            "(?=hparams_search)",
            "optimizer.lr=1e-3 schedule.warmup_updates=2 data.slots=2,4 trainer.max_tokens=1000 ",
        ),
    ],
    "engineer": [
        ("(?<= )sbatch (--nodes=1 )?", "sbatch --nodes=1 --gpus-per-node=1 "),  # one process, on the CPU
        (r"(?<=launch/slurm.sbatch) experiment=\w+", " experiment=smoke"),
        ("max_steps=200", "max_steps=10"),
        ("data.slots=32", "data.slots=4"),
        (r"xlm-\*\.out", '"$FAKE_SLURM"/xlm-*.out'),
    ],
    "translation": [
        ("n_codes=2000", "n_codes=300 holdout.sentences=40"),
        ("(?<=out=paired)", " holdout.sentences=40"),
        ("experiment=demo", "experiment=smoke"),
        (
            r"(?<=xlm-train) experiment=(umt|mt)_\w+",
            r" experiment=smoke objective=\1 data.tokens_per_slot=300 data.max_len=60 callbacks.validation.monitor=val/bleu_de-en",
        ),
        ("smoke objective=umt(.*) objective=mt", r"smoke objective=mt\1"),
        ("trainer.max_steps=625200", "run_name=real trainer.max_steps=4"),
        (r"(?<=objective=mt)(.*) (?=data.path=paired init_encoder\S+ init_decoder\S+$)", r"\1 run_name=supervised "),
    ],
}


@dataclass(frozen=True)
class Command:
    text: str
    status: int

    @property
    def words(self) -> list[str]:
        """Its words, without the variables before it."""
        words = shlex.split(self.text)
        return words[next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]


def text_of(document: str) -> str:
    return (REPOSITORY / f"docs/{document}.md").read_text(encoding="utf-8")


def commands_of(document: str) -> list[Command]:
    """A document's commands in order."""
    text, commands = text_of(document), []
    kinds = re.findall(r"^```(\w*)$", text, re.MULTILINE)
    assert set(kinds[::2]) <= {"bash", "text"}
    assert set(kinds[1::2]) == {""}
    assert not re.search(r"^(    |\t)", text, re.MULTILINE), "an indented block, which nothing runs"
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            command, _, comment = line.partition("   # ")
            status = re.fullmatch(r"exits (\d+)", comment)
            assert bool(status) == bool(comment), f"{line}: a comment says the exit status"
            commands.append(Command(command, int(status[1]) if status else 0))
    for block in re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert not re.search(r"^(\$ |xlm-)", block, re.MULTILINE), "a command in a block that nothing runs"
    return commands


def overrides_in(words: list[str]) -> tuple[str, list[str]] | None:
    """(config name, overrides) of a command of ours or a launch script; None for another program."""
    if words[0] in COMMANDS:
        return words[0].removeprefix("xlm-"), overrides_of(words[1:])
    scripts = [i for i, word in enumerate(words) if word.startswith("launch/")]
    return ("train", words[scripts[0] + 1 :]) if scripts else None


def run(command: Command, folder: Path, environment: dict[str, str]) -> str:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    output = result.stdout + result.stderr
    logs = "".join(path.read_text() for path in folder.glob("slurm/xlm*.out"))
    assert result.returncode == command.status, f"{command.text}\nexit status {result.returncode}\n{output}\n{logs}"
    assert "Traceback" not in output + logs, command.text
    return output


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """Environment of a person's shell, with the scheduler of the launch tests on PATH, in a folder with the checkout's launch/."""
    (tmp_path / "launch").symlink_to(REPOSITORY / "launch")
    (tmp_path / "venv/bin").mkdir(parents=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Slurm(tmp_path, process_environment(PATH=path, VENV=str(tmp_path / "venv"))).environment


@pytest.fixture
def follow(tmp_path: Path, shell: dict[str, str]) -> Callable[..., str]:
    """follow(document): run its commands; returns all that they printed."""

    def followed(document: str) -> str:
        output, needed = "", set()
        for command in commands_of(document):
            text = command.text
            for pattern, replacement in SUBSTITUTIONS[document]:
                text, count = re.subn(pattern, replacement, text)
                needed |= {pattern} if count else set()
            output += run(Command(text, command.status), tmp_path, shell)
        assert needed == {pattern for pattern, _ in SUBSTITUTIONS[document]}
        return output

    return followed


def status_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def events_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_as_they_stand_there_are_known_and_take_what_they_are_given(
    document: str, compose: Callable[..., dict[str, Any]]
) -> None:
    commands = commands_of(document)
    assert len(commands) > 10
    for command in commands:
        assert command.words[0] in PROGRAMS, f"{command.text}: how is this to be tested?"
        found = overrides_in(command.words)
        if found is not None:
            check_overrides(*found)
            if found[0] == "train" and "-m" not in command.words:
                compose("train", "run_name=x", *found[1])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_named_in_passing_exists(document: str) -> None:
    text = text_of(document)
    named = set(re.findall(r"`((?:[a-z_]+\.)+[a-z_]+)=?[^`]*`", text))
    keys = {key for key in named if key.split(".")[0] in ("trainer", "data", "model", "optimizer", "callbacks")}
    check_overrides("train", [f"{key}=1" for key in sorted(keys)])
    for key in re.findall(
        r"`((?:trainer|data|model|optimizer|schedule|callbacks|cluster|plan)\.[a-z_.]+=[^` ]+)`", text
    ):
        check_overrides("plan", [key])
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPOSITORY / "docs" / path).exists(), path
    for path in re.findall(r"`((?:launch|configs|tests)/[\w./]+)`", text):
        assert (REPOSITORY / path).exists(), path


@pytest.fixture
def demo_text(shared: Path, tmp_path: Path) -> None:
    """What `make demo` leaves for the student's own commands."""
    (tmp_path / "demo/text").mkdir(parents=True)
    for language, path in text_files(shared, tmp_path, 6000).items():
        path.rename(tmp_path / f"demo/text/demo.{language}.txt")


@pytest.mark.slow
@pytest.mark.usefixtures("demo_text")
def test_a_student(tmp_path: Path, follow: Callable[..., str]) -> None:
    output = follow("student")
    assert "python launch/demo.py" in output
    assert "the same command goes on from here" in output
    assert [event["event"] for event in events_of(tmp_path / "runs/mine")].count("start") == 2
    assert status_of(tmp_path / "runs/mine")["status"] == "finished"
    for name in ("corpus/report.html", "runs/mine/report.html", "runs/mine/plots/curves.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert "bigram" in output
    assert "a person who" in output
    assert "eine Person, die" in output
    assert "loaded with transformers" in output
    assert "model.n_layers: was 2, now 1" in output
    assert status_of(tmp_path / "runs/small")["status"] == "finished"
    assert (tmp_path / "exported/README.md").is_file()


@pytest.mark.slow
def test_a_researcher(shared: Path, tmp_path: Path, follow: Callable[..., str]) -> None:
    for language, path in text_files(shared, tmp_path, 2500).items():
        (tmp_path / f"wmt.{language}").write_bytes(path.read_bytes())
    output = follow("researcher")
    reported = json.loads((tmp_path / "runs/mlm_tlm/metrics.jsonl").read_text().splitlines()[0])
    assert {"train/loss_de", "train/loss_en", "train/loss_de-en"} <= reported.keys()
    assert "changed since the last start: trainer.max_steps: was 20, now 25" in output
    assert status_of(tmp_path / "runs/paper")["step"] == 25
    start = events_of(tmp_path / "runs/lower")[0]
    assert len(start["parents"]) == 1
    for sweep in ("seeds", "search"):
        jobs = json.loads((tmp_path / f"runs/sweeps/{sweep}/sweep.json").read_text())["jobs"]
        assert [job["status"] for job in jobs] == ["finished"] * 2
        assert (tmp_path / f"runs/sweeps/{sweep}/sweep.png").is_file()
    assert (tmp_path / "plans/paper/plan.md").is_file()
    assert (tmp_path / "original/checkpoint.pth").is_file()
    assert "cc-by-nc-4.0" in (tmp_path / "xlm-clm-ende-1024/README.md").read_text()


@pytest.mark.slow
def test_a_translator(shared: Path, tmp_path: Path, follow: Callable[..., str]) -> None:
    for language, path in text_files(shared, tmp_path, 500).items():
        path.rename(tmp_path / {"de": "german.txt", "en": "english.txt"}[language])
        lines = read_lines(shared / f"corpora/sutta.parvalid.{language}.gz")
        for split, part in (("train", lines[:150]), ("valid", lines[150:170]), ("test", lines[170:190])):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{line}\n" for line in part), encoding="utf-8")
    output = follow("translation")
    assert "encoder: runs/mlm: 30 tensors loaded" in output
    assert "decoder: runs/mlm: 30 tensors loaded; random: blocks.0.source_attention.q.weight" in output
    assert "val/bleu_de-en" in (tmp_path / "runs/umt/metrics.jsonl").read_text()
    assert status_of(tmp_path / "runs/umt")["status"] == status_of(tmp_path / "runs/mt")["status"] == "finished"
    assert "constant" in output
    assert (tmp_path / "exported/checkpoint.pth").is_file()


@pytest.mark.slow
def test_an_engineer(corpus_folder: Path, tmp_path: Path, follow: Callable[..., str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/ende").symlink_to(corpus_folder)
    output = follow("engineer")
    assert "every shard's checksum is right" in output
    assert "finished after 10 steps" in output
    assert "step 5: the loss of slot 0 is not finite" in output
    assert status_of(tmp_path / "runs/paper")["status"] == "finished"
    assert [event["action"] for event in events_of(tmp_path / "runs/rehearsal") if event["event"] == "bad_batch"] == [
        "stop",
        "rollback",
    ]
    assert json.loads((tmp_path / "runs/rehearsal/excluded.json").read_text()) == [5]
