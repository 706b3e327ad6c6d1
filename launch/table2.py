"""`make table2`: Table 2 of the paper in miniature. Every step is a command a user could type; each is shown.

Corpus, causal and masked pretraining, unsupervised translation from the chosen starts, scores on a test set that nothing was
learned from, and the table. Whatever ended is not done again: the same command goes on after any stop.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from table2_page import PAPER, collect, write_page

from data_prep.sources import path_of
from xlm_train.data.manifest import LANGUAGE
from xlm_train.runtime.errors import EXIT_PREEMPTED, ConfigError, UserError
from xlm_train.runtime.files import read_json, write_json

RECORD = "options.json"  # of the output folder
USED = {"page": ("table2", "out", "device"), "paper": ("table2", "out", "rows", "seeds")}  # options, where not all are
TEXT = Path(__file__).parent / "table2_text"
MODULES = {
    "xlm-prep": "data_prep.prepare",
    "xlm-train": "xlm_train.commands.train",
    "xlm-eval": "xlm_train.commands.evaluate",
    "xlm-plan": "xlm_train.commands.plan",
}
ROWS = tuple(PAPER)  # none/none ... mlm/mlm
SPLITS = ("text", "valid", "test", "aligned")
# Updates in a core-minute of the processor that docs/table2.md names; both pretrainings get as many
UPDATES_A_MINUTE = {"mlm": 700.0, "clm": 700.0, "umt": 200.0, "supervised": 200.0}
WARM_UP = {
    "mlm": 1 / 12,
    "clm": 1 / 12,
    "umt": 1 / 4,
    "supervised": 1 / 11,
}  # share of the updates, as in the experiments
VALIDATIONS = 20  # of each run
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole_numbers(value: str) -> list[int]:
    if not all(part.isdecimal() for part in value.split(",")):
        raise ValueError("give whole numbers, with commas between them")
    return list(dict.fromkeys(int(part) for part in value.split(",")))


def _one_of(*names: str) -> Any:
    def read(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be {' or '.join(names)}")
        return value

    return read


def _rows(value: str) -> list[str]:
    chosen = list(ROWS) if value.lower() == "all" else [row.strip() for row in value.lower().split(",")]
    if unknown := [row for row in chosen if row not in ROWS]:
        raise ValueError(f"{', '.join(unknown)}: rows are all, or some of {','.join(ROWS)}")
    return list(dict.fromkeys(chosen))


def _positive(kind: type[int] | type[float]) -> Any:
    def read(value: str) -> float:
        try:
            number = kind(value)
        except ValueError:
            raise ValueError("give a whole number" if kind is int else "give a number") from None
        if not 0 < number < float("inf"):
            raise ValueError("must be above 0")
        return number

    return read


@dataclass
class Options:
    """What the command line may say, as key=value.

    Args:
        table2: mini: done here; page: only the page of what has ended so far; paper: the same rows at full size, planned.
        out: Folder of everything. Texts, n_codes and minutes stay as they were at its first start.
        rows: all, or encoder/decoder by commas.
        seeds: By commas; each row is trained from each.
        minutes_a_row: Core-minutes of translation a row, of the processor in docs/table2.md; null: the experiment's steps.
        minutes_pretraining: The same of each pretraining.
        device: auto, cpu or gpu.
        jobs: Runs side by side; null: one a core, on a GPU one.
        n_codes: BPE merges.
        texts: By split and language: text.en= text.de= monolingual; valid. and test. aligned; aligned. for the dictionary
            and the supervised model, may be left out. Not given: the suttas in launch/table2_text.
    """

    table2: str = field(default="mini", metadata={"read": _one_of("mini", "page", "paper")})
    out: str = field(default="table2", metadata={"read": str})
    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"read": _rows})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"read": _whole_numbers})
    minutes_a_row: float | None = field(default=None, metadata={"read": _positive(float)})
    minutes_pretraining: float | None = field(default=None, metadata={"read": _positive(float)})
    device: str = field(default="auto", metadata={"read": _one_of("auto", "cpu", "gpu")})
    jobs: int | None = field(default=None, metadata={"read": _positive(int)})
    n_codes: int = field(default=4000, metadata={"read": _positive(int)})
    texts: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def made_with(self) -> dict[str, Any]:
        """What everything in `out` depends on."""
        texts = {
            f"{split}.{code}": str(path_of(file).absolute())
            for split, files in sorted(self.texts.items())
            for code, file in sorted(files.items())
        }
        return {name: getattr(self, name) for name in ("n_codes", "minutes_pretraining", "minutes_a_row")} | texts

    @property
    def languages(self) -> list[str]:
        """Both codes, sorted."""
        return sorted(self.texts["text"])

    @property
    def side_by_side(self) -> int:
        """Runs at a time."""
        return self.jobs or (1 if self.device == "gpu" else CORES)

    def steps(self, kind: str) -> list[str]:
        """Overrides for the length of a run of a kind."""
        minutes = self.minutes_pretraining if kind in ("mlm", "clm") else self.minutes_a_row
        if minutes is None:
            return []
        steps = max(4, round(minutes * UPDATES_A_MINUTE[kind]))
        every = max(1, steps // VALIDATIONS)
        words = [f"trainer.max_steps={steps}", f"schedule.warmup_updates={max(1, round(WARM_UP[kind] * steps))}"]
        words += [f"callbacks.{name}.every_n_steps={every}" for name in ("validation", "checkpointing")]
        if kind == "umt":  # denoising's weight falls over three quarters of the run; four steps are an iteration
            words.append(f"objective.weights.ae='0:1,{max(1, steps * 3 // 16)}:0.5'")
        return words


def read_options(words: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        ConfigError: With everything that is wrong with it.
    """
    known = {item.name: item.metadata["read"] for item in fields(Options) if "read" in item.metadata}
    options, problems = Options(), []
    for word in words:
        key, equals, value = word.partition("=")
        split, _, language = key.partition(".")
        if equals and split in SPLITS and language:
            options.texts.setdefault(split, {})[language] = value
        elif equals and key in known:
            try:
                setattr(options, key, known[key](value))
            except ValueError as error:
                problems.append(f"{word}: {error}")
        else:
            problems.append(f"{word}: give one of {', '.join(f'{name}=' for name in known)}, text.LANGUAGE= ...")
    if not options.texts:
        options.texts = {split: {code: str(_shipped(split, code)) for code in ("en", "de")} for split in SPLITS}
    problems += _text_problems(options.texts)
    if options.table2 in USED:
        given = [word for word in words if word.partition("=")[0] not in USED[options.table2]]
        problems += [f"{word}: has no effect on table2={options.table2}" for word in given]
    out = Path(options.out)
    if not options.out or "," in options.out:
        problems.append(f"out={options.out}: give a folder without commas in its name")
    elif any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        problems.append(f"out={options.out}: is a file, or lies in one")
    if options.table2 == "mini" and options.device == "gpu" and not torch.cuda.is_available():
        problems.append("device=gpu: PyTorch finds no GPU here")
    if problems:
        raise ConfigError(problems)
    return options


def _shipped(split: str, language: str) -> Path:
    return TEXT / f"{'train' if split == 'text' else split}.{language}.xz"


def _text_problems(texts: Mapping[str, Mapping[str, str]]) -> list[str]:
    codes = sorted({code for files in texts.values() for code in files})
    if len(codes) != 2:
        return [f"text: {len(codes)} languages ({', '.join(codes)}): give text., valid. and test. of two"]
    if wrong := [code for code in codes if not LANGUAGE.fullmatch(code)]:
        return [f"text.{code}: languages are two or three small letters, such as en" for code in wrong]
    wanted = [split for split in SPLITS if split != "aligned" or split in texts]
    missing = [f"{split}.{code}" for split in wanted for code in codes if code not in texts.get(split, {})]
    problems = [f"{key}: missing; {key}=FILE" for key in missing]
    files = {f"{split}.{code}": file for split, given in texts.items() for code, file in given.items()}
    return problems + [
        f"{key}={file}: there is no such file" for key, file in files.items() if not path_of(file).is_file()
    ]


class Commands:
    """Runs commands of this project. SIGTERM goes on to them; the terminal's SIGINT they get by themselves.

    At either they save and leave, no other is started, and this program leaves; at once where none runs.
    """

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self.busy = self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        if number == signal.SIGTERM:
            for process in self.running:
                process.send_signal(number)
        if not self.busy:
            self._leave()

    def _leave(self) -> NoReturn:
        print("table2: stopped; the same command goes on", file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)

    def run(self, *commands: Sequence[str], side_by_side: int = 1, go_on: bool = False) -> int:
        """Show and run commands, so many at a time, and none after one that failed. Returns the worst status.

        Leaves where one was asked to stop and, unless it may go on, where one fails.
        """
        waiting, statuses = list(commands), []
        self.busy = True
        while waiting or self.running:
            while waiting and len(self.running) < side_by_side and not any(statuses) and not self.stopped:
                words = waiting.pop(0)
                print(f"\n$ {shlex.join(words)}", flush=True)
                self.running.append(subprocess.Popen([sys.executable, "-m", MODULES[words[0]], *words[1:]]))
                if self.stopped:  # while it was being started
                    self.running[-1].terminate()
            if not self.running:
                break
            statuses.append(self.running[0].wait())
            self.running.pop(0)
        self.busy = False
        if EXIT_PREEMPTED in statuses or self.stopped:
            self._leave()
        worst = max(map(abs, statuses), default=0)
        if worst and not go_on:
            sys.exit(worst)
        return worst


def prepare_words(options: Options, corpus: Path) -> list[str]:
    """The command that prepares the corpus."""
    pair = "-".join(options.languages)
    names = {"text": "train", "valid": "valid", "test": "test"}
    words = [f"{names[split]}.{code}={options.texts[split][code]}" for split in names for code in options.languages]
    for split, given in (("train", "aligned"), ("valid", "valid"), ("test", "test")):
        if given in options.texts:
            sides = ",".join(_quoted(options.texts[given][code]) for code in options.languages)
            words.append(f"pairs.{pair}.{split}=[{sides}]")
    shape = ["parallel=[valid,test]", "lowercase=true", f"bpe.n_codes={options.n_codes}", "remove_test_overlap=true"]
    return ["xlm-prep", f"out={corpus}", *words, *shape]


def _quoted(file: str) -> str:
    """A file in a list, whatever its name has."""
    return "'" + file.replace("'", "\\'") + "'"


def remember(options: Options, out: Path) -> list[str]:
    """Note in `out` how it is made and which models it is to have; of the page, read that alone.

    Returns:
        The models that were ever asked for.

    Raises:
        ConfigError: It was made otherwise.
    """
    record = out / RECORD
    known: Any = read_json(record) if record.is_file() else None
    if options.table2 == "page":
        if known is None:
            raise ConfigError(f"out={options.out}: nothing was begun there, so there is no page of it")
        return list(known["models"])
    made = json.loads(json.dumps(options.made_with))
    before = made if known is None else known["made_with"]
    if different := [key for key in sorted({*made, *before}) if made.get(key) != before.get(key)]:
        raise ConfigError(
            [
                f"out={options.out}: was made with {key}={before.get(key)}, not {made.get(key)}; give another out="
                for key in different
            ]
        )
    asked = {*(known or {"models": []})["models"], *(f"{row},{seed}" for row in options.rows for seed in options.seeds)}
    if "aligned" in options.texts and any("mlm" in row for row in options.rows):
        asked.add("supervised")
    models = [name for row in ROWS for name in sorted(asked, key=_seed_of) if name.partition(",")[0] == row]
    models += asked & {"supervised"}
    out.mkdir(parents=True, exist_ok=True)
    write_json(record, {"made_with": made, "models": models})
    return models


def _seed_of(model: str) -> int:
    return int(model.partition(",")[2] or 0)


def job(runs: Path, row: str, seed: int | str) -> Path:
    """The run folder of a row."""
    return runs / f"umt,init={row.replace('/', '_')},seed={seed}"


def main() -> int:
    """Do what the command line asks for. Returns the exit status."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"{__doc__}\n{Options.__doc__}")
        return 0
    options = read_options(sys.argv[1:])
    commands, out = Commands(), Path(options.out).absolute()
    if options.table2 == "paper":
        return plan_the_paper(options, commands)
    runs, corpus, scores = out / "runs", out / "corpus", out / "scores"
    models = {
        name: runs / name if name == "supervised" else job(runs, *name.split(",")) for name in remember(options, out)
    }
    status = train(options, commands, runs, corpus, models) if options.table2 == "mini" else 0
    scores.mkdir(parents=True, exist_ok=True)
    for name, run in models.items():
        score, best = scores / f"{name.replace('/', '_')}.json", run / "checkpoints/best.pt"
        if ended(run) and not (score.is_file() and best.is_file() and score.stat().st_mtime > best.stat().st_mtime):
            device = {"gpu": "cuda"}.get(options.device, options.device)
            words = [f"checkpoint={best}", f"data.path={corpus}", "split=test", f"out={score}", f"device={device}"]
            status = max(status, commands.run(["xlm-eval", *words], go_on=True))
    write_page(out, collect(corpus, runs, scores, models))
    print(f"\ntable2: {out}/table2.html, {out}/table2.md, {out}/table2.json, {out}/table2.png")
    return status


def train(options: Options, commands: Commands, runs: Path, corpus: Path, models: Mapping[str, Path]) -> int:
    """Prepare, pretrain, and train the rows. Returns the worst status of the rows: the others are shown all the same."""
    runs.mkdir(parents=True, exist_ok=True)
    commands.run(prepare_words(options, corpus))
    threads = max(1, CORES // options.side_by_side)
    common = [
        f"data.path={corpus}",
        f"paths.runs={runs}",
        f"trainer.accelerator={options.device}",
        f"trainer.threads={threads}",
    ]
    starts = [kind for kind in ("mlm", "clm") if any(kind in row for row in options.rows) and not ended(runs / kind)]
    waiting = [["xlm-train", f"experiment=table2_{kind}", *common, *options.steps(kind)] for kind in starts]
    commands.run(*waiting, side_by_side=options.side_by_side)
    sweep = [f"init=choice({','.join(row.replace('/', '_') for row in options.rows)})"]
    sweep += [f"seed=choice({','.join(map(str, options.seeds))})", *options.steps("umt")]
    if options.side_by_side > 1:
        sweep += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={options.side_by_side}"]
    status = commands.run(["xlm-train", "-m", "experiment=table2_mini", *common, *sweep], go_on=True)
    if "supervised" in models and not ended(models["supervised"]):
        words = ["experiment=table2_mt", "init=mlm_mlm", *common, *options.steps("supervised")]
        status = max(status, commands.run(["xlm-train", *words], go_on=True))
    return status


def plan_the_paper(options: Options, commands: Commands) -> int:
    """Plan a row of the full size, and say what all take."""
    folder, rows = Path(options.out) / "plan", len(options.rows) * len(options.seeds)
    commands.run(["xlm-plan", "experiment=umt_ende_1024", f"out={folder}"])
    plan = read_json(folder / "plan.json")
    days, cost = rows * plan["time"]["hours"] / 24, rows * plan["cost"]["total"]
    print(
        f"table2: {rows} rows: {days:,.0f} days of {plan['cluster']['name']}, {cost:,.0f} {plan['cost']['currency']}; and pretraining:"
    )
    print("  xlm-plan experiment=clm_ende_1024\n  xlm-plan experiment=mlm_ende_1024")
    return 0


def ended(run: Path) -> bool:
    """Whether a run needs no other start."""
    status = run / "status.json"
    return status.is_file() and read_json(status)["status"] in ("finished", "stopped")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit("\n".join(f"table2: error: {problem}" for problem in error.problems))
