"""Kills live training at random moments until it has finished all the same, and compares it with an undisturbed run.

    python -m tests.faults.harness --kills 1000 --seed 1 --json kills.json

A campaign is one run: the real command, started again after every SIGKILL until it ends by itself. The moment and the
victim are drawn with a seeded generator; what the process was doing when it died is inferred from what it left behind, not
by what was aimed at. At the end weights, moments, progress, reported metrics and the names of the checkpoints kept must
be those of a run nobody disturbed, to the last bit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.conftest import PATIENCE, command, process_environment
from xlm_train.runtime import checkpoint_file
from xlm_train.training.loggers import read_metrics

MARK = "XLM_FAULTS"  # environment variable by which every process of a start is found, orphans included
LOOK_EVERY = 0.002  # seconds
GONE_WITHIN = 180.0  # seconds for the others to leave after one was killed; a few on an idle machine

# 40 MB a checkpoint, every third step: a write is under way for a good part of the time. Reports, validations and
# checkpoints fall on different steps and sometimes on the same.
VALIDATE_EVERY = 7
SETTINGS = (
    "experiment=smoke",
    "model.dim=256",
    "model.ffn_dim=1024",
    "model.n_heads=4",
    "model.n_layers=4",
    "data.slots=3",
    "trainer.threads=1",
    "trainer.max_restarts=0",
    "callbacks.metrics.every_n_steps=2",
    f"callbacks.validation.every_n_steps={VALIDATE_EVERY}",
    "callbacks.checkpointing.every_n_steps=3",
)
STEPS = 100
KILLS_OF_A_CAMPAIGN = 25  # so many fit into the steps of one run

AIMS = {"write": 0.5, "training": 0.2, "start-up": 0.14, "validation": 0.1, "report": 0.06}  # and how often
EVERYTHING = "all processes"


class FaultFound(AssertionError):
    """The run did not do what is promised of it."""


@dataclass(frozen=True)
class Kill:
    """aim: what was waited for. moment: what died, by its remains. seconds: from the kill until the last process left."""

    aim: str
    victim: str
    moment: str
    seconds: float


@dataclass
class Campaign:
    """One run and the kills it survived."""

    run: Path
    processes: int
    seed: str
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0


# -- processes -------------------------------------------------------------------------------------------------------


class Started:
    """A running training command and all the processes that descend from it."""

    def __init__(
        self, words: Sequence[str], module: Sequence[str] = ("-m", "xlm_train.commands.train"), **more: str
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.time = time.time()
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - read when something went wrong
        self.process = subprocess.Popen(
            [sys.executable, *module, *words],
            env=process_environment(**{MARK: self.mark}, **more),
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def members(self) -> dict[str, int]:
        """Process ids by part: "command" (what was started), "rank N" (workers), "agent" (torchrun), or "other"."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"{MARK}={self.mark}".encode() not in environment:
                continue
            pid = int(folder.name)
            ranks = [entry[5:].decode() for entry in environment if entry.startswith(b"RANK=")]
            if pid == self.process.pid:
                found["command"] = pid
            elif ranks:
                found.setdefault(f"rank {ranks[0]}", pid)  # a helper process of a rank comes after it
            elif _parent(pid) == self.process.pid:
                found["agent"] = pid
            else:
                found[f"other {pid}"] = pid
        return found

    def kill(self, victim: str) -> str:
        """SIGKILL a part, or everything where that part is not there (yet). Returns who was killed."""
        members = self.members()
        if victim not in members:
            victim = EVERYTHING
        for name, pid in members.items():
            if victim in (name, EVERYTHING):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return victim

    def wait_until_gone(self, within: float = GONE_WITHIN) -> float:
        """Wait until no process is left; returns the seconds it took. Raises FaultFound where some stay."""
        start = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
            members = self.members()
            if not members and self.process.poll() is not None:
                return time.monotonic() - start
            if time.monotonic() - start > within:
                self.kill(EVERYTHING)
                raise FaultFound(f"{sorted(members)} still run {within:.0f} s later\n{self.text()}")
            time.sleep(0.05)

    def text(self) -> str:
        """What the command has printed."""
        self.output.seek(0)
        return self.output.read()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(EVERYTHING)
        self.process.wait()
        self.output.close()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


# -- moments ---------------------------------------------------------------------------------------------------------


def unfinished_writes(run: Path) -> list[Path]:
    """Temporary files of checkpoints that are being written, or that a killed process left."""
    return list((run / "checkpoints").glob(".step-*.tmp"))


def last_report(run: Path) -> dict[str, Any]:
    """The newest line of metrics.jsonl, or nothing."""
    lines = read_metrics(run / "metrics.jsonl")
    return lines[-1] if lines else {}


def _in_validation(report: Mapping[str, Any]) -> bool:
    """Whether the newest line is a training report whose step's validation is not reported yet."""
    return "train/loss" in report and report["step"] % VALIDATE_EVERY == 0


def moment_of(run: Path, started: float) -> str:
    """What a killed process was doing, by what it left behind. started: when it was started, in seconds of the epoch."""
    if unfinished_writes(run):
        return "checkpoint write"
    report = last_report(run)
    if report.get("time", 0.0) < started:  # this start reported nothing
        return "start-up"
    return "validation" if _in_validation(report) else "training"


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> bool:
    """Wait for a condition; False where the process ended before. Raises FaultFound after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > deadline:
            raise FaultFound(f"nothing happened for {PATIENCE:.0f} s")
        time.sleep(LOOK_EVERY)
    return False


def wait_for_step(run: Path, step: int, start: Started) -> None:
    """Wait until a run has reported a step. Raises FaultFound where it ends before."""
    if not wait_until(lambda: last_report(run).get("step", 0) >= step, start.process):
        raise FaultFound(f"ended before step {step}\n{start.text()}")


def wait_for_moment(aim: str, run: Path, start: Started, draw: random.Random) -> bool:
    """Wait until the run is where the aim wants it; False where it ended before."""

    def reported() -> bool:
        return last_report(run).get("time", 0.0) >= start.time

    if aim == "start-up":
        time.sleep(draw.uniform(0.0, 7.0))
        return start.process.poll() is None
    if not wait_until(reported, start.process):
        return False
    if aim == "training":
        time.sleep(draw.uniform(0.0, 1.5))
        return start.process.poll() is None
    if aim == "report":
        size = (run / "metrics.jsonl").stat().st_size
        return wait_until(lambda: (run / "metrics.jsonl").stat().st_size > size, start.process)
    if aim == "validation":
        if not wait_until(lambda: _in_validation(last_report(run)), start.process):
            return False
        time.sleep(draw.uniform(0.0, 0.05))
        return start.process.poll() is None
    seen = set(unfinished_writes(run))
    if not wait_until(lambda: not seen.issuperset(unfinished_writes(run)), start.process):
        return False
    time.sleep(draw.uniform(0.0, 0.03))
    return wait_until(lambda: bool(unfinished_writes(run)), start.process)


# -- a campaign ------------------------------------------------------------------------------------------------------


def words_of(corpus: Path, run: Path, processes: int, steps: int = STEPS) -> list[str]:
    """The overrides of a training command."""
    return [
        *SETTINGS,
        *(f"data.path={corpus}", f"paths.runs={run.parent}", f"run_name={run.name}"),
        *(f"trainer.devices={processes}", f"trainer.max_steps={steps}"),
    ]


def victims_of(processes: int, aim: str) -> Sequence[str]:
    """Who may be killed. A write is cut off only together with the first rank, which writes."""
    if processes == 1:
        return ("command",)
    return (EVERYTHING, "rank 0") if aim == "write" else (EVERYTHING, "rank 0", "rank 1", "agent", "command")


def campaign(corpus: Path, run: Path, processes: int, kills: int, seed: str, steps: int = STEPS) -> Campaign:
    """Kill a run up to `kills` times, then let it finish. Fewer kills where the run ends before they are used up."""
    draw = random.Random(seed)
    result = Campaign(run, processes, seed)
    while True:
        result.starts += 1
        with Started(words_of(corpus, run, processes, steps)) as start:
            if len(result.kills) < kills:
                aim = draw.choices(list(AIMS), list(AIMS.values()))[0]
                victim = draw.choice(victims_of(processes, aim))
                if wait_for_moment(aim, run, start, draw):
                    victim = start.kill(victim)
                    seconds = start.wait_until_gone()
                    result.kills.append(Kill(aim, victim, moment_of(run, start.time), round(seconds, 2)))
                    print(f"{run.name}: {result.kills[-1]}", file=sys.stderr, flush=True)
                    continue
            status = start.process.wait(PATIENCE)
            if status != 0:
                raise FaultFound(f"{run.name}, start {result.starts}: exit status {status}\n{start.text()}")
            return result


# -- comparison ------------------------------------------------------------------------------------------------------

OWN = ("config", "sha256")  # of a checkpoint: they hold the run's name
RESULTS = (
    "step",
    "train/",
    "val/",
    "optim/",
    "progress/updates",
    "progress/tokens",
)  # no time, speed


def state_of(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on what happened to it on the way."""
    content = checkpoint_file.load(checkpoint_file.in_folder(run / "checkpoints")[0])
    reports = [
        {key: value for key, value in line.items() if key.startswith(RESULTS)}
        for line in read_metrics(run / "metrics.jsonl")
    ]
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    best = os.readlink(run / "checkpoints/best.pt")
    state = {part: value for part, value in content.items() if part not in OWN}
    return {**state, "reports": reports, "kept": kept, "best": best}


def differences(a: Any, b: Any, where: str) -> Iterator[str]:
    """Places where two values differ in a single bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping) and list(a) == list(b):
        for key in a:
            yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}[{number}]")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        if not same:
            yield where
    elif type(a) is not type(b) or a != b:
        yield f"{where}: {str(a)[:60]} and {str(b)[:60]}"


def compare(undisturbed: Path, run: Path) -> None:
    """Raises FaultFound with every difference between two finished runs."""
    if found := list(differences(state_of(undisturbed), state_of(run), run.name)):
        raise FaultFound(f"{len(found)} differences from the undisturbed run:\n" + "\n".join(found[:20]))


# -- many campaigns --------------------------------------------------------------------------------------------------


def kill_many(
    corpus: Path, folder: Path, kills: int, seed: int, processes: Sequence[int] = (1, 2), side_by_side: int = 2
) -> list[Campaign]:
    """Campaigns, in turn with each number of processes, until `kills` kills were survived. Raises FaultFound."""
    with ThreadPoolExecutor(side_by_side) as pool:

        def undisturbed(number: int) -> Path:
            return campaign(corpus, folder / f"undisturbed-{number}", number, 0, "").run

        references = dict(zip(processes, pool.map(undisturbed, processes), strict=True))

        def one(number: int) -> Campaign:
            count = processes[number % len(processes)]
            share = min(KILLS_OF_A_CAMPAIGN, -(-kills // len(processes)))
            result = campaign(corpus, folder / f"killed-{number}", count, share, f"{seed}/{number}")
            compare(references[count], result.run)
            print(f"{result.run.name}: {count} processes, {len(result.kills)} kills, same result", file=sys.stderr)
            return result

        done: list[Campaign] = []
        while (left := kills - sum(len(result.kills) for result in done)) > 0:
            batch = max(1, left // KILLS_OF_A_CAMPAIGN)
            done += pool.map(one, range(len(done), len(done) + batch))
        return done


def summary(campaigns: Sequence[Campaign]) -> dict[str, Any]:
    """Counts by number of processes, by moment and by victim; the longest time that others outlived a kill."""
    kills = [(result.processes, kill) for result in campaigns for kill in result.kills]

    def counted(keys: Iterator[str]) -> dict[str, int]:
        return dict(collections.Counter(keys).most_common())

    return {
        "kills": len(kills),
        "runs": len(campaigns),
        "starts": sum(result.starts for result in campaigns),
        "processes": counted(f"{count}" for count, _ in kills),
        "moment": counted(kill.moment for _, kill in kills),
        "victim": counted(kill.victim if count > 1 else "the one process" for count, kill in kills),
        "seconds_until_all_left": max((kill.seconds for _, kill in kills), default=0.0),
    }


def table(figures: Mapping[str, Any]) -> str:
    """The summary as a Markdown table."""
    rows = [f"| kills survived | {figures['kills']} in {figures['runs']} runs |"]
    rows += [f"| with {count} process(es) | {number} |" for count, number in sorted(figures["processes"].items())]
    rows += [f"| during {moment} | {number} |" for moment, number in figures["moment"].items()]
    rows += [f"| killed: {victim} | {number} |" for victim, number in figures["victim"].items()]
    rows += [f"| longest time until all processes had left | {figures['seconds_until_all_left']} s |"]
    return "\n".join(["| SIGKILL | |", "|---|---:|", *rows])


def random_corpus(folder: Path, lines: int = 2500) -> Path:
    """A binarised corpus of made-up words: nothing here depends on what the text says."""
    draw = random.Random(0)
    files = {}
    for language in ("de", "en"):
        words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(500)]
        files[language] = folder / f"text.{language}"
        text = (" ".join(draw.choices(words, k=draw.randint(4, 16))) for _ in range(lines))
        files[language].write_text("\n".join(text) + "\n")
    command(
        "data_prep.prepare", f"out={folder / 'corpus'}", *(f"train.{language}={file}" for language, file in files.items()),
        "bpe.n_codes=600", "holdout.sentences=100", "workers=1",
    )  # fmt: skip
    return folder / "corpus"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side-by-side", type=int, default=2, help="runs at once")
    parser.add_argument("--json", type=Path, help="file for the figures and every kill")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = kill_many(random_corpus(folder), folder, arguments.kills, arguments.seed, (1, 2), arguments.side_by_side)
    figures = {**summary(done), "minutes": round((time.monotonic() - begun) / 60, 1), "seed": arguments.seed}
    if arguments.json:
        every = [asdict(kill) | {"run": result.run.name} for result in done for kill in result.kills]
        arguments.json.write_text(json.dumps({**figures, "each": every}, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
