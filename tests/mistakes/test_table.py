"""Every mistake of the table is answered: one message, the right status, no traceback, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch

from tests import forked
from tests.conftest import PATIENCE, REPOSITORY, process_environment, text_files
from tests.forked import MODULES, Answer, Request, listing
from tests.mistakes.table import BEGINNINGS, COMMANDS, CONTINUE, EXPORT, PLAN, SCORE, TABLE, TRAIN, TRANSLATE, Mistake

CONFIGS = {
    "broken": "# @package _global_\noptimizer: {lr: 1",
    "unknown": "# @package _global_\noptimzer:\n  lr: 1",
    "home": "# @package _global_\npaths:\n  runs: ~/runs",
    "others": "# @package _global_\ndefaults:\n  - override /model: gpt",
}


@dataclass(frozen=True)
class Desk:
    """The folder in which the command lines are typed."""

    folder: Path

    def run(self, line: list[str], **more: object) -> Answer:
        environment = process_environment(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
        return forked.run(Request(line, str(self.folder), environment, composed_once=True, plain_user=True, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def desk(shared: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = laid_out(Desk(tmp_path_factory.mktemp("desk")), shared, corpus_folder)
    denied = desk.folder / "denied"
    denied.chmod(0)
    yield desk
    denied.chmod(0o700)


def laid_out(desk: Desk, shared: Path, corpus: Path) -> Desk:
    """A corpus, two runs of two steps, some text, and things that are not what they seem."""
    folder = desk.folder
    (folder / "corpus").symlink_to(corpus)
    text_files(shared, folder, 20)
    for name in (
        "folder", "foreign", "strange", "mine/experiment", "runs/unreadable/checkpoints", "runs/listed", "denied",
        "blocked.part", "elsewhere", "folders/codes", "cut",
    ):  # fmt: skip
        (folder / name).mkdir(parents=True)
    binary = bytes(range(256)) * 20
    contents = {
        "empty.txt": b"",
        "binary.txt": binary,
        "latin.txt": b"one\nZ\xfcrich\n",
        "packed.gz": b"not packed\n",
        "archive.zip": b"PK\x03\x04 and so on\n",
        "texts/one.txt": b"one\n",
        "foreign/codes": b"a b 1\n",
        "strange/config.json": b"{",
        "mine/list.json": b"[]",
        "mine/experiment/binary.yaml": binary,
        "runs/unreadable/config.yaml": binary,
        "runs/unreadable/checkpoints/step-00000001.pt": b"",
        "runs/listed/status.json": b"[]",
        "runs/blocked/metrics.jsonl": b"",
        "runs/blocked/plots": b"",
        "scores.en.jsonl": b"The king.\n",
        "mark.txt": b"\xef\xbb\xbf",
        "cut/manifest.json": b'{"format": "xlm_tr',
        "marked.codes": b"\xef\xbb\xbfa b 1\n",
        **{f"mine/experiment/{name}.yaml": text.encode() for name, text in CONFIGS.items()},
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "elsewhere/.work").symlink_to("/proc")
    for words in (
        ["run_name=first"],
        ["run_name=around/inner"],
        ["run_name=translator", "objective=ae", "data.max_len=60"],
    ):
        answer = desk.run([*TRAIN.split(), *words, "trainer.max_steps=2"])
        assert answer.status == 0, answer.err
    assert desk.run([*EXPORT.replace("out=new", "out=exported").split(), "verify=false"]).status == 0
    damage(folder)
    return desk


def damage(folder: Path) -> None:
    """Copies of the run and of its export with one thing wrong in each."""
    for name in ("cut", "used", "linked"):
        shutil.copytree(folder / "runs/first", folder / f"runs/{name}", symlinks=True)
    config = folder / "runs/cut/config.yaml"
    config.write_bytes(b"".join(config.read_bytes().splitlines(keepends=True)[:40]))
    (folder / "runs/used/energy.json").write_text('{"energy_kwh": 1e999}')
    (folder / "runs/linked/excluded.json").symlink_to("nowhere")
    for name, changes in (("bent", {"emb_dim": -1, "pad_index": 7}), ("windowless", {"bptt": -5}), ("diverged", {})):
        shutil.copytree(folder / "exported", folder / name)
        file = folder / name / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    shutil.copytree(folder / "exported", folder / "flipped")
    weights = safetensors.torch.load_file(folder / "diverged/model.safetensors")
    for name, value in (("flipped", 0.5), ("diverged", float("nan"))):
        weights["transformer.embeddings.weight"][5] = value
        safetensors.torch.save_file(weights, folder / name / "model.safetensors", {"format": "pt"})
    (folder / "diverged/export.json").unlink()  # or its checksums would tell first


def problems_of(mistake: Mistake, answer: Answer, written: list[str]) -> list[str]:
    """What is wrong with an answer."""
    name, error = mistake.words[0], ": error: "
    found = []
    if answer.status != mistake.status:
        found.append(f"exit status {answer.status}, not {mistake.status}")
    if "Traceback" in answer.out + answer.err:
        found.append("a traceback")
    if answer.err.count(error) != 1 or f"{name}{error}" not in answer.err:
        found.append(f"{answer.err.count(error)} messages")
    if mistake.said not in answer.err:
        found.append(f"does not say: {mistake.said}")
    if written:
        found.append(f"has written {', '.join(written)}")
    return [f"{problem}\n{answer.err[-2000:]}" for problem in found]


def tried(mistake: Mistake, desk: Desk, apart: bool = False) -> list[str]:
    """Try a mistake; what is wrong with its answer. What it has written is removed."""
    before = listing(desk.folder)
    if apart:
        command = [sys.executable, "-m", MODULES[mistake.words[0]], *mistake.words[1:]]
        out = open(mistake.stdout, "w") if mistake.stdout else subprocess.PIPE  # noqa: SIM115 (closed with the process)
        done = subprocess.run(
            command, cwd=desk.folder, stdout=out, stderr=subprocess.PIPE, text=True, env=process_environment()
        )
        answer = Answer(done.returncode, done.stdout or "", done.stderr)
    else:
        how = {"file_bytes": mistake.file_bytes, "without": mistake.without, "stdout": mistake.stdout}
        answer = desk.run(mistake.words, **how)
    after = listing(desk.folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in changed:
        if name not in before and (desk.folder / name).exists():
            whole = desk.folder / name
            shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
    leaves = mistake.leaves
    return problems_of(
        mistake, answer, [name for name in changed if not (leaves and f"{name}/".startswith(f"{leaves}/"))]
    )


@pytest.mark.slow
def test_every_mistake_is_answered(desk: Desk) -> None:
    wrong = [f"{mistake.line}: {problem}" for mistake in TABLE for problem in tried(mistake, desk)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [mistake for mistake in TABLE if mistake.apart], ids=lambda mistake: mistake.line)
def test_the_same_in_a_process_of_its_own(mistake: Mistake, desk: Desk) -> None:
    assert tried(mistake, desk, apart=True) == []


def test_the_table_has_every_command() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {f"xlm-{name}" for name in COMMANDS} == set(MODULES)
    assert {mistake.words[0] for mistake in TABLE} == set(scripts)


def test_a_bad_answer_is_noticed() -> None:
    mistake = Mistake("xlm-eval x=1", "x=1: no")
    assert problems_of(mistake, Answer(2, "", "xlm-eval: error: x=1: no\n"), []) == []
    for answer, problem in (
        (Answer(1, "", "xlm-eval: error: x=1: no\n"), "exit status 1, not 2"),
        (Answer(2, "", "Traceback (most recent call last):\nxlm-eval: error: x=1: no\n"), "a traceback"),
        (Answer(2, "", "xlm-eval: error: x=1: no\nxlm-eval: error: x=1: no\n"), "2 messages"),
        (Answer(2, "", "xlm-eval: error: something\n"), "does not say"),
    ):
        (found,) = problems_of(mistake, answer, [])
        assert found.startswith(problem)
    assert "has written half" in problems_of(mistake, Answer(2, "", "xlm-eval: error: x=1: no\n"), ["half"])[0]


@pytest.mark.slow
def test_odd_names_work(desk: Desk, tmp_path: Path) -> None:
    """Spaces, umlauts, `=` and `,` in names, unquoted for Hydra."""
    odd = tmp_path / "größe, a=b [c]"
    odd.mkdir()
    shutil.copy(desk.folder / "runs/first/checkpoints/best.pt", odd / "süß, a=b.pt")
    shutil.copy(desk.folder / "text.en", odd / "text, x=y.en")
    checkpoint, text = f"checkpoint={odd / 'süß, a=b.pt'}", odd / "text, x=y.en"
    for words in (
        ["xlm-eval", checkpoint, "data.path=corpus", f"out={odd / 'a=b, c.json'}"],
        ["xlm-eval", checkpoint, f"text.en={text}", f"out={odd / 'text.json'}"],
        ["xlm-generate", checkpoint, "lang=en", "prompt=5", "max_tokens=2", f"out={odd / 'a=b, c.jsonl'}"],
        ["xlm-train", *TRAIN.split()[1:], "trainer.max_steps=1", f"paths.runs={odd / 'runs'}", "run_name=a,b=c"],
        ["xlm-report", "run_name=a,b=c", f"paths.runs={odd / 'runs'}"],
    ):
        answer = desk.run(words)
        assert answer.status == 0, (words, answer.err)
    assert {"a=b, c.json", "text.json", "text.en.jsonl", "a=b, c.jsonl", "runs"} <= {
        path.name for path in odd.iterdir()
    }


@pytest.mark.slow
def test_nobody_needs_to_read_on(desk: Desk) -> None:
    """`| head` closes the pipe: no message, and what was to be written to a file is."""
    for line in (SCORE, CONTINUE, f"{TRANSLATE} file=text.en block_lines=1", f"{PLAN} out=plan", "xlm-plan --help"):
        answer = desk.run(line.split() + (["out=scores.json"] if line == SCORE else []), stdout="|")
        assert answer.status == 0, (line, answer.err)
        assert "error" not in answer.err
    assert (desk.folder / "scores.json").is_file()
    assert (desk.folder / "plan/plan.md").is_file()


# As a console script does; it says when it has begun to listen for Ctrl-C.
SCRIPT = """
import signal, sys
def tell(number, handler, set_handler=signal.signal):
    before = set_handler(number, handler)
    if number == signal.SIGINT:
        print(flush=True)
    return before
signal.signal = tell
sys.argv[0] = "xlm-{0}"
from {1} import xlm_{0}
xlm_{0}()
"""
MOMENTS = (0.01, 0.05, 0.1, 0.25, 0.5)  # seconds after that


@pytest.mark.slow
@pytest.mark.parametrize(("number", "line"), enumerate(BEGINNINGS))
def test_ctrl_c_in_the_first_second(number: int, line: str, desk: Desk) -> None:
    name, *words = line.split()
    name = name.removeprefix("xlm-")
    program = SCRIPT.format(name, "data_prep" if name == "prep" else "xlm_train.commands")
    before = listing(desk.folder)
    for moment in MOMENTS[number % 2 :: 2]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words], cwd=desk.folder, env=process_environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        if name == "train":  # the first asks it to leave, the second insists
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)  # two at once would be one
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in said
        assert (process.returncode, "interrupted" in said) == (130, True), said
    assert listing(desk.folder) == before
