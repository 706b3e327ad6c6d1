"""A sweep (`xlm-train -m`): many runs from one command, each in its own folder, started by any of Hydra's launchers.

Jobs may run in this process (Hydra's basic launcher), in others (joblib) or on other hosts (submitit): the process that
was started and its jobs know of each other through files alone, in RUNS/sweeps/NAME:

    start.json                                     what tells this start's jobs from an earlier one's
    stop                                           is there once a signal has asked the sweep to leave; jobs look for it
    jobs/JOB.json                                  what a job varied, where its run is from here, and how it ended
    sweep.html, table.md, sweep.json, sweep.png    the result (xlm_train/report/sweep.py)

The same command again does only what is not finished. An Optuna search works likewise, without a database: it is seeded,
finished jobs answer from their folders, so it asks for the same jobs again and goes on where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shlex
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm_train.config.command import Multirun, is_multirun_job, typed_overrides
from xlm_train.config.overrides import compose, config_dir_of, group_options, overrides_of
from xlm_train.runtime.console import Progress
from xlm_train.runtime.errors import EXIT_FAILED, EXIT_PREEMPTED, ConfigError, UserError
from xlm_train.runtime.files import atomic_write, lock, read_json, write_json
from xlm_train.runtime.launcher import refuse_left_over_variables
from xlm_train.runtime.streams import settle_streams

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from xlm_train.runtime.processes import StopFlag
    from xlm_train.runtime.run_folder import RunFolder

LOOK_EVERY = 0.5  # seconds, for the `stop` file: it may lie on a network filesystem


@dataclass(frozen=True)
class Sweep:
    """The started process's side. constant: keys that the command line gives one value. flags: its words that are no overrides."""

    folder: Path
    constant: tuple[str, ...]
    flags: tuple[str, ...]

    def carry_out(self, words: list[str], start: Callable[[list[str]], None], flag: StopFlag) -> int:
        """Let Hydra start the jobs, wait, write and print the table. Returns the exit status.

        75 where a signal or a time limit left jobs for another start of the same command; else that of the worst job.

        Args:
            words: The command line.
            start: Lets Hydra start the jobs of a command line.
            flag: Set by a signal that asks the sweep to leave.
        """
        from xlm_train.report.sweep import conclude

        identity, broken, over = secrets.token_hex(8), False, threading.Event()
        with self._locked():
            (self.folder / "stop").unlink(missing_ok=True)
            write_json(self.folder / "start.json", {"start": identity, "flags": self.flags})
            threading.Thread(target=self._pass_on, args=(flag, over), daemon=True).start()
            # submitit's own signal before a time limit would end a job where it stands; this one saves and leaves
            os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")
            # a job's name leaves out the keys whose value all jobs share
            keys = ",".join(f"'{key}'" for key in self.constant)
            try:
                start([*words, f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"])
            except Exception as error:  # a launcher whose process was killed, say; what the jobs left is still shown
                told = f"xlm-train: error: {error}" if isinstance(error, UserError) else traceback.format_exc()
                print(told, file=sys.stderr, flush=True)
                broken = True
            finally:
                over.set()
            statuses = conclude(self.folder, identity)
        if EXIT_PREEMPTED in statuses or flag.is_set:
            return EXIT_PREEMPTED
        return max([*statuses, EXIT_FAILED if broken else 0])

    def _pass_on(self, flag: StopFlag, over: threading.Event) -> None:
        while not flag.is_set:
            if over.wait(LOOK_EVERY):
                return
        (self.folder / "stop").touch()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder and hold its lock: two starts of one sweep would take each other's jobs for their own."""
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
            file = open(self.folder / ".lock", "w")  # noqa: SIM115 - held until the end
        except OSError as error:
            raise ConfigError(f"paths.runs: {self.folder} cannot be made: {error.strerror}") from error
        with file:
            try:
                lock(file)
            except BlockingIOError as error:
                raise ConfigError(f"run_name: another process is carrying out the sweep of {self.folder}") from error
            yield


def multirun(config_name: str, flag: StopFlag) -> Multirun:
    """What `-m` does in a command that trains."""

    def start_all(words: list[str], start: Callable[[list[str]], None]) -> int:
        refuse_left_over_variables()
        return sweep_of(config_name, words).carry_out(words, start, flag)

    return Multirun(
        start=start_all,
        job=lambda carry_out, config: run_job(carry_out, config, flag),
    )


def sweep_of(config_name: str, arguments: Sequence[str]) -> Sweep:
    """The sweep that a command line asks for.

    Raises:
        ConfigError: With what keeps it, or any job of it, from starting.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from xlm_train.runtime.run_folder import name_problem
    from xlm_train.runtime.storage import is_url

    words, config_dir = overrides_of(arguments), config_dir_of(arguments)
    parsed = OverridesParser.create().parse_overrides(words)
    varied = [override for override in parsed if override.is_sweep_override()]
    problems = [
        f"{override.input_line}: one sweep has one {override.key_or_group}; the jobs' names are made from what else varies"
        for override in varied
        if override.key_or_group in ("run_name", "paths.runs")
    ]
    problems += [
        f"{override.input_line}: what is Hydra's own cannot vary; a setting that varies is given as KEY=VALUE,VALUE"
        for override in varied
        if str(override.key_or_group).startswith("hydra")
    ]
    if problems:
        raise ConfigError(problems)
    shared = [override for override in parsed if not override.is_sweep_override()]
    common = [str(override.input_line) for override in shared]
    config = compose(config_name, common, config_dir, whole=True)
    if OmegaConf.is_missing(config, "run_name"):
        raise ConfigError("run_name has no value: give run_name=...")
    if (why := name_problem(str(config.run_name))) is not None:
        raise ConfigError(f"run_name='{config.run_name}': {why}")
    if is_url(config.paths.runs):
        raise ConfigError(
            f"paths.runs={config.paths.runs}: a sweep keeps its table on a disk; paths.runs=FOLDER"
            f" storage.url={config.paths.runs} mirrors its runs"
        )
    launcher = str(config.hydra.launcher.get("_target_"))
    if launcher.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise ConfigError("hydra/launcher=slurm: there is no srun on this machine; start the sweep where SLURM is")
    if "BasicSweeper" not in str(config.hydra.sweeper.get("_target_")) and not _validates(config):
        raise ConfigError("callbacks.validation=null: a search goes by the validations of its jobs")
    jobs = _jobs(config, parsed, config_dir)
    # jobs of other launchers may find GPUs that this machine lacks
    if problems := _problems_of(jobs, config_name, common, config_dir, trains_here="BasicLauncher" in launcher):
        raise ConfigError(problems)
    flags = [word for word in arguments if word not in words and word not in ("-m", "--multirun")]
    constant = [str(override.key_or_group) for override in shared if not str(override.key_or_group).startswith("hydra")]
    return Sweep(Path(config.hydra.sweep.dir), tuple(constant), tuple(flags))


def _validates(config: DictConfig) -> bool:
    """Whether runs will have the callback, which is filled in where it is not given: only null leaves it out."""
    return config.callbacks.get("validation", "as shipped") is not None


def _jobs(config: DictConfig, parsed: Sequence[Override], config_dir: str | None) -> list[tuple[str, ...]]:
    """The overrides in which jobs differ: of each job of a grid; of a search, which chooses, two that are far apart."""
    grid = "BasicSweeper" in str(config.hydra.sweeper.get("_target_"))
    varied: dict[str, list[str]] = {}
    params, problems = _params(config), []
    for override in [*params, *parsed]:  # the command line comes last and counts
        key = override.get_key_element()
        varied.pop(key, None)
        if override.is_interval_sweep() and grid:
            problems.append(
                f"{override.input_line}: only a search draws from an interval: hparams_search=optuna; or give {key}=VALUE,VALUE"
            )
        elif (override.is_sweep_override() or override in params) and (values := _values(override, config_dir)):
            varied[key] = [f"{key}={value}" for value in (values if grid else (values[0], values[-1]))]
    if problems:
        raise ConfigError(problems)
    return list(itertools.product(*varied.values()) if grid else dict.fromkeys(zip(*varied.values(), strict=True))) or [
        ()
    ]


def _params(config: DictConfig) -> list[Override]:
    """What the config's own sweeper varies."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, params = OverridesParser.create(), config.hydra.sweeper.get("params") or {}
    found, problems = [], []
    for word in (f"{key}={value}" for key, value in params.items()):
        try:
            found.append(parser.parse_override(word))
        except HydraException as error:
            problems.append(f"hydra.sweeper.params: {word}: not a valid override ({str(error).splitlines()[0]})")
    if problems:
        raise ConfigError(problems)
    return found


def _values(override: Override, config_dir: str | None) -> list[str]:
    """The values of an override; of an interval both ends."""
    from hydra.core.override_parser.types import Glob

    value: Any = override.value()
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_interval_sweep():
        return [str(value.start), str(value.end)]
    if isinstance(value, Glob):
        return value.filter(group_options(str(override.key_or_group), config_dir))
    return list(override.sweep_string_iterator())


def _problems_of(
    jobs: Sequence[tuple[str, ...]], config_name: str, common: Sequence[str], config_dir: str | None, trains_here: bool
) -> list[str]:
    """What is wrong with any of the jobs, each problem once."""
    from xlm_train.config.given_shape import take_shape
    from xlm_train.config.train import problems_of

    problems: dict[str, None] = {}
    progress = Progress("check", len(jobs), {"jobs": 0}, shown=len(jobs) > 10)
    by_suffix: dict[str, tuple[str, ...]] = {}
    for job in jobs:
        other = by_suffix.setdefault(_suffix(job), job)
        if other is not job:
            problems[
                f"{' '.join(job)} and {' '.join(other)}: would share a run's folder; name the values otherwise"
            ] = None
        try:
            config = compose(config_name, [*common, *job], config_dir)
            config.run_name = f"{config.run_name}{_suffix(job)}"
            take_shape(config, [*common, *job])
            problems |= dict.fromkeys(problems_of(config, of_corpus=True) if trains_here else [])
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
        progress.add(1, 1)
    progress.end()
    return list(problems)


def job_suffix() -> str:
    """What tells this job's run from the sweep's others: what it varies, fit for a folder's name. Empty outside of a sweep."""
    return _suffix(_varied()) if is_multirun_job() else ""


def _suffix(varied: Iterable[str]) -> str:
    return "".join("," + re.sub(r"[^\w.=+@-]", "_", word) for word in varied)


def _varied() -> list[str]:
    """This job's overrides of keys that the command line does not give one value for all jobs."""
    from hydra.core.hydra_config import HydraConfig

    shared = HydraConfig.get().job.config.override_dirname.exclude_keys
    return [word for word in typed_overrides() if word.partition("=")[0].lstrip("+~") not in shared]


def is_done(run: RunFolder) -> bool:
    """Whether a run has come to its end under exactly this config, so that another start has nothing to do."""
    from xlm_train.runtime.run_folder import DONE

    return run.read_status() in DONE and not run.changes and any(run.checkpoints.glob("step-*.pt"))


def run_job(main: Callable[[DictConfig], int | None], config: DictConfig, flag: StopFlag) -> float:
    """One job of a sweep, in whatever process the launcher runs it. Returns its score, the lower the better (`best_score`).

    Infinity stands for a job that has not come to its end, so a search turns away from what diverges. Nothing is raised
    for a failed job: its folder tells (status.json, traceback.txt), and the other jobs run.

    Args:
        main: Trains by a config. Returns the exit status; None: 0.
        config: The job's; `run_name` is the sweep's, without what the job varies.
        flag: Set by a signal that asks the job to leave; set here where the sweep's `stop` file appears.
    """
    from hydra.core.hydra_config import HydraConfig

    from xlm_train.runtime.run_folder import DONE

    settle_streams()  # in a launcher's process nobody has
    hydra = HydraConfig.get()
    folder, suffix = Path(hydra.sweep.dir), job_suffix()
    start = read_json(folder / "start.json")
    overrides = [word for word in typed_overrides() if not word.startswith("run_name=")]
    run = Path(config.paths.runs) / f"{config.run_name}{suffix}"
    record: dict[str, Any] = {
        "start": start["start"],
        "job": hydra.job.num,
        "varied": dict(word.lstrip("+~").partition("=")[::2] for word in _varied()),
        "run": os.path.relpath(run, folder),  # both may be moved together
        "command": shlex.join(["xlm-train", *start["flags"], *overrides, f"run_name={config.run_name}{suffix}"]),
    }
    file = folder / "jobs" / f"{suffix.lstrip(',') or 'job'}.json"
    if flag.is_set or (folder / "stop").exists():
        write_json(file, {**record, "status": "not started", "exit_status": EXIT_PREEMPTED})
        return float("inf")
    write_json(file, {**record, "status": "running", "exit_status": EXIT_FAILED})  # until it says otherwise itself
    print(f"xlm-train: job {hydra.job.num}: {' '.join(_varied()) or config.run_name}", file=sys.stderr, flush=True)
    with _listening(folder / "stop", flag):
        outcome = _outcome(main, config, run)
    write_json(file, {**record, **outcome})
    return best_score(run) if outcome["status"] in DONE else float("inf")


@contextlib.contextmanager
def _listening(stop: Path, flag: StopFlag) -> Iterator[None]:
    """Set `flag` once the sweep is asked to leave, be it by a signal to this process or through the file."""
    if threading.current_thread() is threading.main_thread():
        flag.install()  # in a launcher's process nobody has
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            if stop.exists():
                flag.is_set = True
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _outcome(main: Callable[[DictConfig], int | None], config: DictConfig, run: Path) -> dict[str, Any]:
    """Run the job: its status, exit status and, where it failed, the reason; which it also leaves in the run's folder."""
    try:
        exit_status = main(config) or 0
    except Exception as error:
        exit_status = error.status if isinstance(error, UserError) else EXIT_FAILED
        problems = error.problems if isinstance(error, UserError) else [f"{type(error).__name__}: {error}"]
        text = "\n".join(f"xlm-train: error: {problem}" for problem in problems)
        print(text if isinstance(error, UserError) else traceback.format_exc(), file=sys.stderr, flush=True)
        # What a run under this name has left before is kept as it is: it may be another config's, or still at work.
        if _status(run).get("status") in (None, "failed"):
            _leave_word(run, problems, traceback.format_exc())
        return {"status": "failed", "exit_status": exit_status, "problems": problems}
    found = _status(run)
    if exit_status in (0, EXIT_PREEMPTED):
        return {"status": found.get("status", "ended"), "exit_status": exit_status}  # verify=... leaves no status
    problems = [str(found.get("error", f"its processes ended with status {exit_status}"))]
    if found.get("status") != "failed":  # killed, with no time to say so
        _leave_word(run, problems, problems[0] + "\n")
    return {"status": "failed", "exit_status": exit_status, "problems": problems}


def _status(run: Path) -> dict[str, Any]:
    """What a run says of itself; that it is damaged, where it cannot be read."""
    try:
        found = read_json(run / "status.json") if (run / "status.json").is_file() else {}
    except UserError:
        found = None
    return found if isinstance(found, dict) else {"status": "damaged"}


def _leave_word(run: Path, problems: Sequence[str], text: str) -> None:
    with contextlib.suppress(UserError, OSError):  # a full disk must not hide what went wrong
        run.mkdir(parents=True, exist_ok=True)
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(
            run / "status.json", {"status": "failed", "time": at, "error": "\n".join(problems), "problems": problems}
        )
        with atomic_write(run / "traceback.txt") as file:
            file.write(text.encode())


def best_score(run: Path) -> float:
    """The best value of what a run monitors, negative where higher is better; infinity where it has none."""
    from xlm_train.evaluation import loss_of
    from xlm_train.report.reading import read_run

    found = read_run(run)
    value = found.at(found.monitor, found.best_step)
    return float("inf") if value is None else loss_of(found.monitor, value)
