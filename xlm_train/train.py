"""One process's run, assembled: corpus, order, objective, model, module, callbacks, loggers, Trainer, fit."""

from __future__ import annotations

import functools
import gc
import os
import time
from pathlib import Path

import hydra.utils
import torch

from xlm_train.config.renamed import with_new_names
from xlm_train.config.train import IDENTITY, TrainConfig
from xlm_train.data.corpus import Corpus
from xlm_train.data.datamodule import CorpusDataModule, order_of
from xlm_train.model.transformer import XLM, count_parameters
from xlm_train.report import write_report
from xlm_train.report.recipe import advice
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import counted, log
from xlm_train.runtime.control_group import ControlGroup, is_lost_peer
from xlm_train.runtime.device import disable_malloc_trim
from xlm_train.runtime.errors import ConfigError
from xlm_train.runtime.launcher import STARTED
from xlm_train.runtime.processes import StopFlag, is_first_process, processes, rank
from xlm_train.runtime.run_folder import RunFolder
from xlm_train.training.anomaly import NonFiniteOrSpike, roll_back
from xlm_train.training.init_from import open_start
from xlm_train.training.loggers import make_loggers
from xlm_train.training.module import LanguageModel
from xlm_train.training.strategy import sharded
from xlm_train.training.trainer import RunContext, Trainer, make_trainer, quiet_lightning


def train(config: TrainConfig, flag: StopFlag) -> int:
    """Resume what is there, train to the end, leave a status.

    Args:
        config: checked and resolved.
        flag: set by a signal that asks the run to leave.

    Returns:
        The exit status.

    Raises:
        UserError: whatever the user can fix.
    """
    if processes() != config.trainer.world_size:
        raise ConfigError(
            f"the launcher started {processes()} processes, but trainer.devices={config.trainer.devices} x"
            f" trainer.nodes={config.trainer.nodes} = {config.trainer.world_size}: make them equal"
        )
    quiet_lightning()
    disable_malloc_trim()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    corpus = Corpus(config.data.path)
    folder = open_run(config, corpus)
    run = RunContext(folder, ControlGroup(processes()), flag, float(os.environ.get(STARTED, time.time())))
    with folder.held(explain=lambda error: not (isinstance(error, RuntimeError) and is_lost_peer(error))):
        status, step = fit(config, corpus, run)
    if is_first_process() and status != "preempted":  # then there is no time for it
        try:
            write_report(folder.path)
        except Exception as error:  # whatever goes wrong there does not undo the run
            log(f"warning: no report was written: {type(error).__name__}: {error}; xlm-report writes it again")
    goes_on = "; the same command goes on from here" if status == "preempted" else ""
    log(f"{status} after {step:,} steps; checkpoints in {folder.checkpoints}{goes_on}")
    return 0


def open_run(config: TrainConfig, corpus: Corpus) -> RunFolder:
    """Open the run's folder, where an earlier start must have had the same identity."""
    return RunFolder(config.paths.runs, config.run_name, config.resolved, corpus.lineage, IDENTITY, with_new_names)


def fit(config: TrainConfig, corpus: Corpus, run: RunContext) -> tuple[str, int]:
    """Train, again from the last checkpoint after each rollback. Returns how the run stands, and its step."""
    while True:
        trainer, module, data, newest = assemble(config, corpus, run)
        began_at = 0 if newest is None else checkpoint_file.step_of(newest)
        try:
            trainer.fit(module, data, ckpt_path=newest)
            break
        except NonFiniteOrSpike as error:
            roll_back(error, module.detector, run.folder, corpus, data.order, data.bptt, began_at)
        except SystemExit as error:  # what Lightning makes of a second SIGINT
            raise KeyboardInterrupt from error
        del trainer, module, data
        gc.collect()  # the attempt's model and its gradient buffers, before the next one's are made
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    status, reason = run.outcome(module.state.step, module.stop)
    if is_first_process():
        run.folder.write_status(status, reason=reason, **module.state.counts())
        run.folder.record(status, module.state.step, reason=reason)
    return status, module.state.step


def assemble(
    config: TrainConfig, corpus: Corpus, run: RunContext
) -> tuple[Trainer, LanguageModel, CorpusDataModule, Path | None]:
    """Put the parts of one attempt together, and find the checkpoint that it resumes."""
    folder, settings = run.folder, config.trainer
    on_gpus = settings.accelerator != "cpu" and torch.cuda.is_available()

    text = {lang: corpus.stream("train", lang) for lang in corpus.languages}
    order = order_of(
        text, config.data.bptt, config.data.lang_alpha, config.data.slots, config.data.slot_streams, config.seed
    )
    objective = hydra.utils.instantiate(config.objective)(text, corpus.languages, config.data.bptt)
    data = CorpusDataModule(corpus, order, objective.batch, config.data.bptt, rank(), processes(), on_gpus)

    found = folder.newest_checkpoint()
    shape = config.model.shape(corpus.n_words, len(corpus.languages))
    start = None
    if found.content is None and config.init_from is not None:
        start = open_start(config.init_from, corpus, shape.to_dict(), config.init_optimizer)
    parents = found.content["lineage"]["parents"] if found.content else start.parents if start else []

    torch.manual_seed(config.seed)
    make_optimizer = hydra.utils.instantiate(config.optimizer, _convert_="all")
    schedule = hydra.utils.instantiate(config.schedule)
    module = LanguageModel(
        XLM(shape, config.model.recompute, config.model.ops),
        objective,
        make_optimizer if settings.sharding is None else sharded(make_optimizer),
        # Hydra's kind of partial examines its target at each call: 0.4 ms a step
        functools.partial(schedule.func, *schedule.args, **schedule.keywords),
        stop=config.steps,
        slots=config.data.slots,
        clip_norm=settings.clip_norm,
        seed=config.seed,
        float16=settings.precision == "16-mixed",
        excluded=folder.excluded,
        nan_steps=config.debug.nan_steps,
        provenance={
            "shape": shape.to_dict(),
            "text": corpus.text,
            "lineage": {"corpus": corpus.lineage, "parents": parents},
            "config": config.resolved,
        },
        optimizer_state=None if start is None else start.optimizer,
    )
    if start is not None:
        module.model.load_state_dict(start.weights)
        module.state.updates = start.updates

    step = 0 if found.path is None else checkpoint_file.step_of(found.path)
    origin = found.content["sha256"] if found.content else start.sha256 if start else None
    alike = [config.resolved, corpus.lineage, origin, sorted(folder.excluded)]  # what all processes must have
    log(
        f"run {folder.path}: {count_parameters(module.model):,} parameters, {counted(processes(), 'process')}, "
        f"{order.slots} slots x {order.slot_streams} streams x {data.bptt} tokens = {data.tokens_per_step:,} tokens a step, "
        + (f"from step {step:,} of {module.stop:,}" if step else f"{module.stop:,} steps")
    )
    for change in folder.changes:
        log(f"changed since the last start: {change}")
    for warning in advice(config.resolved, data.tokens_per_step):
        log(f"warning: {warning}")
    if is_first_process():
        folder.write_config()
        folder.write_status("running")
    callbacks = {
        name: hydra.utils.instantiate(entry, _convert_="all") for name, entry in config.callbacks.items() if entry
    }
    trainer = make_trainer(
        run,
        list(callbacks.values()),
        make_loggers(config.logger, config.resolved, folder, step),
        run.handshake(alike, step, parents, settings.start_timeout_seconds, settings.timeout_seconds),
        accelerator=settings.accelerator,
        devices=settings.devices,
        nodes=settings.nodes,
        precision=settings.precision,
        compression=settings.gradient_compression,
        start_timeout=settings.start_timeout_seconds,
        report_every=getattr(callbacks.get("metrics"), "every_n_steps", 50),
        validate_every=getattr(callbacks.get("validation"), "every_n_steps", module.stop),
        opened=None if found.path is None or found.content is None else (found.path, found.content),
    )
    return trainer, module, data, found.path
