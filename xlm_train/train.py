"""One process's run, assembled: corpus, order, objective, model, module, callbacks, loggers, Trainer, fit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from hydra.utils import instantiate

from xlm_train.config.renamed import with_new_names
from xlm_train.config.train import IDENTITY, TrainConfig, steps_of
from xlm_train.data.corpus import Corpus
from xlm_train.data.datamodule import CorpusDataModule
from xlm_train.interop.import_ import open_model
from xlm_train.model.transformer import count_parameters
from xlm_train.objectives.back_translation import cannot_begin
from xlm_train.plan.fit import out_of_memory_named, require_memory
from xlm_train.report import leave_report
from xlm_train.report.advice import doubts
from xlm_train.runtime.console import counted, log
from xlm_train.runtime.control_group import ControlGroup, is_lost_peer
from xlm_train.runtime.device import disable_malloc_trim, release_memory
from xlm_train.runtime.launcher import STARTED
from xlm_train.runtime.processes import StopFlag, is_first_process, processes, rank, require_processes
from xlm_train.runtime.run_folder import RunFolder
from xlm_train.training.anomaly import NonFiniteOrSpike, roll_back
from xlm_train.training.init_from import find_start
from xlm_train.training.loggers import make_loggers
from xlm_train.training.module import LanguageModel
from xlm_train.training.schedule import unwrapped
from xlm_train.training.strategy import optimizer_maker
from xlm_train.training.trainer import RunContext, Trainer, make_trainer, quiet_lightning


def train(config: TrainConfig, flag: StopFlag) -> int:
    """Resume what is there, train to the end, leave a status. Returns the exit status.

    Args:
        config: checked and resolved.
        flag: set by a signal that asks the run to leave.

    Raises:
        UserError: whatever the user can fix.
    """
    require_processes(config.trainer.devices, config.trainer.nodes)
    quiet_lightning()
    disable_malloc_trim()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    corpus = Corpus(config.data.path)
    folder = open_run(config, corpus)
    run = RunContext(folder, ControlGroup(processes()), flag, float(os.environ.get(STARTED, time.time())))
    require_memory(config, config.model.shape(corpus.n_words, len(corpus.languages)))
    with folder.held(explain=lambda error: not is_lost_peer(error)), out_of_memory_named(config.resolved, run):
        status, step = fit(config, corpus, run)
        if is_first_process() and status != "preempted":  # then there is no time for it
            leave_report(folder.path)
    log(run.last_line(status, step))
    return 0


def open_run(config: TrainConfig, corpus: Corpus) -> RunFolder:
    """Open the run's folder, where an earlier start must have had the same identity."""
    place = (config.paths.runs, config.run_name)
    return RunFolder(*place, config.resolved, corpus.lineage, IDENTITY, with_new_names, config.storage.mirrored)


def fit(config: TrainConfig, corpus: Corpus, run: RunContext) -> tuple[str, int]:
    """Train, again from the last checkpoint after each rollback. Returns how the run stands, and its step."""
    while True:
        trainer, module, data, newest = assemble(config, corpus, run)
        try:
            run.state = module.state
            trainer.fit(module, data, ckpt_path=newest)
            return run.conclude(module.state, module.stop), module.state.step
        except NonFiniteOrSpike as error:
            roll_back(error, module.detector, run.folder, data, newest)
        except SystemExit as error:  # what Lightning makes of a second SIGINT
            raise KeyboardInterrupt from error
        del trainer, module, data
        release_memory()  # of the attempt's model and its gradient buffers, before the next one's are made
        run.control_group.highest(0)  # all wait for the first process, whose last checkpoint is whole now


def assemble(
    config: TrainConfig, corpus: Corpus, run: RunContext
) -> tuple[Trainer, LanguageModel, CorpusDataModule, Path | None]:
    """Put the parts of one attempt together, and find the checkpoint that it resumes."""
    reading, settings, run.stop_reason = config.data, config.trainer, None
    float16 = settings.precision == "16-mixed"
    text = reading.text(corpus, config.seed, config.model.max_positions, float16)
    objective = instantiate(config.objective, _convert_="all")(text)
    pin = settings.accelerator != "cpu" and torch.cuda.is_available()
    data = CorpusDataModule(corpus, objective, reading.slots, reading.bptt, config.seed, rank(), processes(), pin)

    torch.manual_seed(config.seed)
    model = config.model.make(corpus.n_words, len(corpus.languages), translates=objective.evaluation == "translation")
    start = find_start(run.folder, config.given_weights, config.init_optimizer, model, corpus, open_model)
    module = LanguageModel(
        model,
        objective,
        optimizer_maker(instantiate(config.optimizer, _convert_="all"), settings.sharding),
        unwrapped(instantiate(config.schedule)),
        stop=steps_of(config.resolved["trainer"], data.tokens_per_step),
        slots=reading.slots,
        clip_norm=settings.clip_norm,
        seed=config.seed,
        float16=float16,
        excluded=run.folder.excluded,
        nan_steps=config.debug.nan_steps,
        provenance={
            "shape": model.shape.to_dict(),
            "text": corpus.text,
            "lineage": {"corpus": corpus.lineage, "parents": start.parents},
            "config": config.resolved,
            "evaluation": objective.evaluation,
        },
        start=start,
    )
    log(
        f"run {run.folder.path}: {count_parameters(module.model):,} parameters, {counted(processes(), 'process')}, "
        f"{counted(reading.slots, 'slot')} = {data.tokens_per_step:,} tokens a step, "
        + (f"from step {start.step:,} of {module.stop:,}" if start.step else f"{module.stop:,} steps")
    )
    warnings = doubts(config.resolved, data.order, module.stop) + cannot_begin(data.order.streams, start.parents)
    for line in (*data.order.batches(), *map("warning: {}".format, warnings)):
        log(line)
    run.folder.begin(corpus.manifest)

    parts = {name: instantiate(entry, _convert_="all") for name, entry in config.callbacks.items() if entry}
    alike = [config.resolved, corpus.lineage, start.sha256, sorted(run.folder.excluded)]  # what all processes must have
    trainer = make_trainer(
        run,
        list(parts.values()),
        make_loggers(config.logger, config.resolved, run.folder, start.step),
        run.handshake(alike, start.step, start.parents, settings.start_timeout_seconds, settings.timeout_seconds),
        accelerator=settings.accelerator,
        devices=settings.devices,
        nodes=settings.nodes,
        precision=settings.precision,
        compression=settings.gradient_compression,
        sharding=settings.sharding,
        start_timeout=settings.start_timeout_seconds,
        report_every=getattr(parts.get("metrics"), "every_n_steps", 50),
        validate_every=getattr(parts.get("validation"), "every_n_steps", module.stop),
        opened=start.newest,
    )
    return trainer, module, data, start.path  # the weights that it begins with are in the module: hold them no longer
