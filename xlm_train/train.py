"""`xlm-train`: the whole job, top to bottom. Each name leads to one file."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.runtime.files import atomic_write
from xlm_train.runtime.launcher import STARTED
from xlm_train.runtime.processes import StopFlag, processes, rank

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xlm_train.data.corpus import Corpus, TokenStream
    from xlm_train.data.order import Order
    from xlm_train.model.transformer import ModelShape
    from xlm_train.runtime.control_group import Agreement
    from xlm_train.runtime.run_folder import RunFolder
    from xlm_train.training.anomaly import BadNumbers, BadStep
    from xlm_train.training.state import Progress


EXIT_LOST = 1  # another process of the run is gone: a restart may help


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed: NCCL's errors have a type of their own, gloo's name its source."""
    import torch

    from xlm_train.runtime.control_group import ProcessesMissing

    return isinstance(error, ProcessesMissing | torch.distributed.DistError) or "gloo" in str(error).lower()


@dataclass
class Job:
    """What stays the same over all attempts to carry a run to its end."""

    config: dict[str, Any]
    corpus: Corpus
    streams: Mapping[str, TokenStream]
    order: Order
    run: RunFolder
    tokens_per_step: int
    max_steps: int
    excluded: set[int]
    agreement: Agreement
    started: float  # seconds of the epoch
    resumed_at: int = 0  # step at which the present attempt began


def train(config: dict[str, Any], flag: StopFlag) -> int:
    """One process of a run: resume what is there, train to the end, leave a status. Returns the exit status.

    config: composed and resolved (configs/train.yaml). flag: set by a signal that asks the run to leave.
    Raises UserError for whatever the user can mend.
    """
    import torch

    from xlm_train.runtime.device import disable_malloc_trim
    from xlm_train.runtime.processes import is_first_process
    from xlm_train.training.anomaly import BadNumbers
    from xlm_train.training.trainer import quiet_lightning

    settings = config["trainer"]
    world = settings["devices"] * settings["nodes"]
    if processes() != world:
        raise ConfigError(
            f"the launcher started {processes()} processes, but trainer.devices={settings['devices']} x"
            f" trainer.nodes={settings['nodes']} = {world}: make them equal"
        )
    quiet_lightning()
    disable_malloc_trim()
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])

    job = open_job(config)
    run = job.run
    if is_first_process():
        run.prepare()
        (run.path / "traceback.txt").unlink(missing_ok=True)  # of an earlier start
    try:
        while True:
            try:
                progress, reason = attempt(job, flag)
                break
            except BadNumbers as error:
                roll_back(job, error)
            gc.collect()  # the attempt's model and its gradient buffers, before the next one's are made
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    except BaseException as error:
        if is_first_process():
            with contextlib.suppress(UserError, OSError):  # a full disk must not hide what went wrong
                said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                run.write_status("failed", error=said)
        if not (isinstance(error, RuntimeError) and is_lost_peer(error)):  # that one's cause is in another process
            with contextlib.suppress(UserError, OSError), atomic_write(run.path / "traceback.txt") as file:
                file.write(traceback.format_exc().encode())
        raise
    finally:
        run.release()
    status = "finished" if progress.step >= job.max_steps else "stopped" if reason == "patience" else "preempted"
    if is_first_process():
        run.write_status(status, reason=reason, **progress.to_dict())
        run.record(status, progress.step, reason=reason)
        if status != "preempted":  # then there is no time for it
            leave_report(run)
    goes_on = "; the same command goes on from here" if status == "preempted" else ""
    log(f"{status} after {progress.step:,} steps; checkpoints in {run.checkpoints}{goes_on}")
    return 0


def leave_report(run: RunFolder) -> None:
    """Write the run's report; whatever goes wrong there does not undo the run."""
    try:
        from xlm_train.report import write_report

        write_report(run.path)
    except Exception as error:
        log(f"warning: no report was written: {type(error).__name__}: {error}; xlm-report writes it again")


def open_job(config: dict[str, Any]) -> Job:
    """The corpus, the order in which it is read, and the run's folder. Nothing is written yet."""
    from xlm_train.config.train import steps_of
    from xlm_train.data.corpus import Corpus
    from xlm_train.data.order import Order, language_shares
    from xlm_train.runtime.control_group import Agreement
    from xlm_train.runtime.run_folder import RunFolder

    data = config["data"]
    corpus = Corpus(data["path"])
    streams = {lang: corpus.stream("train", lang) for lang in corpus.languages}
    shares = language_shares({lang: stream.n_sentences for lang, stream in streams.items()}, data["lang_alpha"])
    windows = {lang: stream.n_windows(data["bptt"]) for lang, stream in streams.items()}
    order = Order(windows, shares, data["slots"], data["slot_streams"], config["seed"])
    tokens_per_step = data["slots"] * data["slot_streams"] * data["bptt"]
    run = RunFolder(config["paths"]["runs"], config["run_name"], config, corpus.lineage)
    max_steps = steps_of(config["trainer"], tokens_per_step)
    started = float(os.environ.get(STARTED, time.time()))
    excluded = set(run.excluded_steps())
    return Job(
        config, corpus, streams, order, run, tokens_per_step, max_steps, excluded, Agreement(processes()), started
    )


def attempt(job: Job, flag: StopFlag) -> tuple[Progress, str | None]:
    """Assemble the parts, resume from the newest checkpoint, train. Returns where the run stands and why it left.

    Raises BadNumbers, on all processes, where the guard's policy is not to go on.
    """
    import hydra.utils
    import torch

    from xlm_train.data.datamodule import StepBatches
    from xlm_train.model.transformer import XLM, ModelShape, count_parameters
    from xlm_train.report.recipe import advice
    from xlm_train.runtime import checkpoint_file
    from xlm_train.runtime.console import counted
    from xlm_train.runtime.control_group import member, table
    from xlm_train.runtime.energy import Energy
    from xlm_train.runtime.processes import is_first_process
    from xlm_train.training.anomaly import Guard
    from xlm_train.training.callbacks import Checkpointing, Interruption, Metrics, Stragglers, Validation
    from xlm_train.training.init_from import fork
    from xlm_train.training.loggers import make_loggers
    from xlm_train.training.module import CausalLanguageModel
    from xlm_train.training.strategy import sharded
    from xlm_train.training.trainer import make_trainer

    config, corpus, order, run, max_steps = job.config, job.corpus, job.order, job.run, job.max_steps
    data, settings, when = config["data"], config["trainer"], config["callbacks"]

    found = checkpoint_file.newest(run.checkpoints, run.foreign)
    for path, why in found.damaged:
        log(f"warning: {path} is passed over: {why}")
    if found.damaged and found.content is None:
        raise UserError(
            [
                f"run_name={config['run_name']}: no checkpoint in {run.checkpoints} is whole; move them away to start anew",
                *(why for _, why in found.damaged),
            ]
        )

    torch.manual_seed(config["seed"])
    arguments = {name: value for name, value in config["model"].items() if name != "recompute"}
    shape = ModelShape(n_words=corpus.n_words, n_langs=len(corpus.languages), **arguments)
    guard = when["guard"]
    make_optimizer = hydra.utils.instantiate(config["optimizer"], _convert_="all")
    if settings["sharding"] is not None:
        make_optimizer = sharded(make_optimizer)
    schedule = hydra.utils.instantiate(config["schedule"])
    # Hydra's kind of it examines its target anew at each call: 0.4 ms a step
    if isinstance(schedule, functools.partial):
        schedule = functools.partial(schedule.func, *schedule.args, **schedule.keywords)
    module = CausalLanguageModel(
        XLM(shape, recompute=config["model"]["recompute"]),
        make_optimizer=make_optimizer,
        schedule=schedule,
        slots=data["slots"],
        clip_norm=settings["clip_norm"],
        seed=config["seed"],
        float16=settings["precision"] == "16-mixed",
        guard=Guard(guard["policy"], guard["spike_z"], guard["window"]),
        max_skips=guard["max_in_a_row"],
        excluded=job.excluded,
        nan_steps=config["debug"]["nan_steps"],
        on_bad_step=lambda bad: report_bad_step(job, bad, "skip"),
        compression=settings["gradient_compression"],
    )
    resume, parents = found.content, []
    del found
    if resume is not None:
        parents = resume["lineage"]["parents"]
    elif config["init_from"] is not None:
        resume, parents = fork(config["init_from"], corpus, shape.to_dict(), config["init_optimizer"])
    step = job.resumed_at = resume["progress"]["step"] if resume is not None else 0
    stopped = resume is not None and out_of_patience(resume["progress"], when["validation"]["patience"])

    agreement = job.agreement

    def meet(rank: int, device: torch.device) -> None:
        agreement.connect(member(rank, device, common), settings["start_timeout_seconds"], settings["timeout_seconds"])
        members = agreement.members
        for line in table(members) if len(members) > 1 else []:
            log(line)
        if is_first_process():
            hosts, devices = {m.host: 0 for m in members}, [m.device for m in members]
            started = {"processes": len(members), "hosts": list(hosts), "devices": devices, "parents": parents}
            run.record("start", step, **started, changes=run.changes)

    common = digest([config, corpus.lineage, resume["sha256"] if resume else None, sorted(job.excluded)])
    loggers = make_loggers(config, run, step) if is_first_process() else []
    on_gpus = settings["accelerator"] != "cpu" and torch.cuda.is_available()
    energy, use, watts = None, when["energy"], config["cluster"].get("watts")
    if is_first_process() and (watts is not None or use["meter"] == "codecarbon" or not on_gpus):
        energy = Energy(run.path / "energy.json", use["meter"], watts, processes(), settings["nodes"], use["region"])
    batches = StepBatches(
        job.streams, corpus.languages, order, data["bptt"], rank(), processes(),
        pin=on_gpus,
    )  # fmt: skip
    batches.start, batches.stop = step, max_steps
    if stopped:
        log("this run has stopped: validation no longer improved; a larger callbacks.validation.patience goes on")
        batches.stop = step

    report_every = when["metrics"]["every_n_steps"]
    peak = peak_tokens_per_second(config, shape)
    metrics = Metrics(report_every, list(corpus.languages), job.tokens_per_step, max_steps, batches, energy, peak)
    stragglers = Stragglers(
        report_every, agreement,
        lambda rank, host, times: run.record("slow_rank", module.progress.step, rank=rank, host=host, times=times),
    )  # fmt: skip
    validation = Validation(
        {lang: corpus.stream("valid", lang) for lang in corpus.languages if corpus.has("valid", lang)},
        corpus.languages, data["bptt"], when["validation"]["every_n_steps"], when["validation"]["patience"],
        max_steps, metrics, when["validation"]["batch_windows"],
    )  # fmt: skip
    lineage = {"corpus": corpus.lineage, "parents": parents}
    fixed = {"shape": shape.to_dict(), "text": text_of(corpus), "lineage": lineage, "config": config}
    checkpointing = Checkpointing(
        run.checkpoints, when["checkpointing"]["every_n_steps"], when["checkpointing"]["keep_last"], max_steps,
        fixed, resume, metrics, validation,
    )  # fmt: skip
    del resume  # Checkpointing drops it when it is restored: nothing else may hold its tensors
    interruption = Interruption(
        when["interruption"]["every_n_steps"], settings["max_hours"], flag, agreement, checkpointing, job.started
    )

    log(
        f"run {run.path}: {count_parameters(module.model):,} parameters, {counted(processes(), 'process')}, "
        f"{order.slots} slots x {order.slot_streams} streams x {data['bptt']} tokens = {job.tokens_per_step:,} tokens a step, "
        + (f"from step {step:,} of {max_steps:,}" if step else f"{max_steps:,} steps")
    )
    for change in run.changes:
        log(f"changed since the last start: {change}")
    for warning in advice(config, job.tokens_per_step):
        log(f"warning: {warning}")
    if is_first_process():
        run.write_config()
        run.write_status("running")
    trainer = make_trainer(config, [metrics, stragglers, validation, checkpointing, interruption], loggers, meet)
    try:
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    except SystemExit as error:  # what Lightning makes of a second SIGINT
        raise KeyboardInterrupt from error
    finally:
        if energy is not None:
            energy.close()
    reason = interruption.reason
    if reason is None and out_of_patience(module.progress.to_dict(), when["validation"]["patience"]):
        reason = "patience"
    return module.progress, reason


def roll_back(job: Job, error: BadNumbers) -> None:
    """Leave the bad step out and let the next attempt begin at the last checkpoint, where that is the guard's policy.

    All processes come here with the same error. Raises TrainingStopped otherwise, naming the file with the step's text.
    """
    from xlm_train.runtime.processes import is_first_process
    from xlm_train.training.anomaly import TrainingStopped

    guard, bad = job.config["callbacks"]["guard"], error.bad
    since = sum(step >= job.resumed_at for step in job.excluded)  # rollbacks without a new checkpoint between them
    action = guard["policy"] if since < guard["max_in_a_row"] else "stop"
    report_bad_step(job, bad, action)
    if action != "rollback":
        raise TrainingStopped(
            f"step {bad.step}: {bad.reason}: training has diverged; the last checkpoint is intact; what the step read"
            f" is in {job.run.bad_batch(bad.step)}. "
            + (
                f"That is one more than callbacks.guard.max_in_a_row={guard['max_in_a_row']} rollbacks since step {job.resumed_at}."
                if since
                else "callbacks.guard.policy=skip or rollback goes on without such steps."
            )
            + " A lower optimizer.lr or a longer schedule.warmup_updates may prevent them"
        )
    job.excluded.add(bad.step)
    if is_first_process():
        job.run.exclude(bad.step)


def report_bad_step(job: Job, bad: BadStep, action: str) -> None:
    """Say what was bad, and write the text of the step into a file of the run. For the first process."""
    from xlm_train.runtime.files import atomic_write
    from xlm_train.runtime.processes import is_first_process
    from xlm_train.training.bad_batch import decoded

    if not is_first_process():
        return
    job.run.record("bad_batch", bad.step, reason=bad.reason, slots=list(bad.slots), action=action)
    file = job.run.bad_batch(bad.step)
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as out:
        out.write(decoded(bad, job.corpus, job.order, job.config["data"]["bptt"]).encode())
    if action != "stop":
        job.run.record(action, bad.step)
        log(
            f"warning: step {bad.step}: {bad.reason}: left out by callbacks.guard.policy={action}; its text is in {file}"
        )


def peak_tokens_per_second(config: dict[str, Any], shape: ModelShape) -> float | None:
    """Tokens/s that all devices' peak arithmetic would allow, where the cluster's file knows the peak."""
    from xlm_train.model.flops import flops_per_token

    peak = (config["cluster"].get("peak_tflops") or {}).get(config["trainer"]["precision"])
    if peak is None:
        return None
    predicted = config["data"]["bptt"] - 1
    parts = flops_per_token(shape, predicted, config["model"]["recompute"])
    a_token = sum(part.total for part in parts.values()) * predicted / config["data"]["bptt"]
    return float(peak * 1e12 * processes() / a_token)


def out_of_patience(progress: dict[str, Any], patience: int | None) -> bool:
    """Whether a checkpoint is that of a run which validation has stopped."""
    return patience is not None and progress["failures"] > patience


def digest(value: Any) -> str:
    """A fingerprint that is equal only where the value is."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def text_of(corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint needs in order to read new text: languages, vocabulary, codes, how text was tokenised."""
    return {
        "languages": corpus.languages,
        "vocab": corpus.vocab_path.read_bytes().decode(),
        "codes": corpus.codes_path.read_bytes().decode(),
        **corpus.manifest["text"],
    }
