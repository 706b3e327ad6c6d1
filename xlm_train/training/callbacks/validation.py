"""Scores on the validation text, the best checkpoint, and stopping when they no longer improve."""

from __future__ import annotations

import math
import time

from xlm_train.data.corpus import Corpus
from xlm_train.data.datamodule import validation_texts
from xlm_train.evaluation import loss_of
from xlm_train.evaluation.bleu import sacrebleu_metrics
from xlm_train.evaluation.validation import (
    KINDS,
    TRANSLATION,
    Evaluator,
    Share,
    TextEvaluator,
    TranslationEvaluator,
    text_metrics,
    translatable,
    translation_metrics,
)
from xlm_train.model.translation import Beam
from xlm_train.objectives.objective import Objective
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, at_least
from xlm_train.training.callbacks.metrics import send
from xlm_train.training.loggers import JsonLines
from xlm_train.training.module import LanguageModel
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer


def metrics_of(corpus: Corpus, objective: Objective) -> list[str]:
    """List the metrics that a validation of what an objective learns gives; none where there is no text for it.

    Raises:
        ConfigError: translations would be scored, and sacrebleu is not installed.
    """
    if objective.evaluation != TRANSLATION:
        return text_metrics(validation_texts(corpus, [stream.name for stream in objective.streams]))
    if names := translation_metrics(translatable(corpus, directions_of(objective))):
        sacrebleu_metrics()
    return names


def directions_of(objective: Objective) -> list[tuple[str, str]]:
    """List the languages (source, target) that an objective learns to translate."""
    return list(getattr(objective, "directions", ()))


class Validation(StepCallback):
    """Scores the validation text every so many steps and once at the end.

    The objective's `evaluation` says how (xlm_train/evaluation/validation.py). The processes divide the text among
    themselves and exchange what they found, so all of them decide alike. Translations that a validation shows go to
    `samples.jsonl`.
    The hooks of Lightning's validation (`on_validation_start` ... `on_validation_end`) fire for every callback, so stock
    ones such as EarlyStopping, ModelCheckpoint and EMAWeightAveraging act as they do after Lightning's own loop.

    Args:
        every_n_steps: how often.
        patience: failures in a row that are allowed; the next one stops the run, as the original's stopping criterion
            does. A failure is a value of `monitor` not strictly better than the best. None: never stop.
        batch_windows: windows scored in one forward pass.
        monitor: the metric that decides which checkpoint is the best. Lower is better, but for accuracies, BLEU and
            chrF.
        beam: translations followed at once; 1: greedy.

    Raises:
        ConfigError: with every value that cannot work.
    """

    phase = Phase.VALIDATE

    def __init__(
        self,
        every_n_steps: int = 1000,
        patience: int | None = 10,
        batch_windows: int = 16,
        monitor: str = "val/ppl",
        beam: int = 1,
    ) -> None:
        at_least(1, every_n_steps=every_n_steps, batch_windows=batch_windows, beam=beam)
        if patience is not None:
            at_least(0, patience=patience)
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.batch_windows = batch_windows
        self.monitor = monitor
        self.beam = beam

    def setup(self, trainer: Trainer, module: LanguageModel, stage: str) -> None:  # type: ignore[override]
        """Find the text, and whether it can tell what is monitored.

        Raises:
            ConfigError: no validation gives the monitored metric, or the objective's kind of score is not known.
        """
        self.evaluator = self._evaluator(trainer, module)
        names = self.evaluator.metrics
        if names and self.monitor not in names:
            raise ConfigError(f"callbacks.validation.monitor={self.monitor}: must be one of {', '.join(names)}")
        self.samples = JsonLines(trainer.run.folder.samples)

    def _evaluator(self, trainer: Trainer, module: LanguageModel) -> Evaluator:
        data, objective, longest = trainer.data, module.objective, module.model.shape.max_positions
        if (kind := objective.evaluation) not in KINDS:
            raise ConfigError(
                f"objective: its evaluation is {kind!r}, known are {', '.join(KINDS)}: callbacks.validation=null"
            )
        if kind != TRANSLATION:
            texts, languages = data.validation_texts, data.languages
            return TextEvaluator(texts, languages, kind, data.bptt, longest, self.batch_windows)
        directions = directions_of(objective)
        found = translatable(data.corpus, directions)
        if missing := sorted({"-".join(sorted(direction)) for direction in directions if direction not in found}):
            log(
                f"no validation of {', '.join(missing)}: the corpus has no such pairs (xlm-prep pairs.{missing[0]}.valid=)"
            )
        if not directions:
            log("no validation: the objective learns no direction of translation")
        return TranslationEvaluator(data.corpus, found, longest, Beam(self.beam) if self.beam > 1 else None)

    def out_of_patience(self, module: LanguageModel) -> bool:
        """Say whether validation has failed too often in a row."""
        return self.patience is not None and module.state.failures > self.patience

    def on_train_start(self, trainer: Trainer, module: LanguageModel) -> None:  # type: ignore[override]
        """Leave at once where the run had stopped for good; begin to compare again where another metric decides now."""
        state = module.state
        if state.monitor != self.monitor:
            if state.best_metric is not None:
                log(
                    f"validations are compared by {self.monitor} from here on; the best by {state.monitor} is forgotten"
                )
            state.monitor, state.best_metric, state.best_step, state.failures = self.monitor, None, None, 0
        if self.samples.path.exists() and trainer.is_global_zero:
            self.samples.rewind(state.step)
        if self.out_of_patience(module):
            log("this run has stopped: validation no longer improved; a larger callbacks.validation.patience goes on")
            trainer.run.stop_reason = "patience"
            trainer.should_stop = True

    def on_step_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Validate where that is due. A collective."""
        state = module.state
        if not self.evaluator.metrics or (state.step % self.every_n_steps and state.step != module.stop):
            return
        begun = time.perf_counter()
        share = Share(module.device, trainer.global_rank, trainer.world_size, trainer.run.control_group.gather_objects)
        with trainer.validation() as logged, trainer.precision_plugin.forward_context():
            found = self.evaluator.score(module.model, share)
            state.validation = found.metrics
        send(trainer, {**state.validation, **logged}, state.step)
        if found.samples and trainer.is_global_zero:
            self.samples.append(state.step, {"samples": found.samples})
        value = state.validation[self.monitor]
        if math.isfinite(value) and (state.best_metric is None or self._is_better(value, state.best_metric)):
            state.best_metric, state.best_step, state.failures = value, state.step, 0
        else:
            if not math.isfinite(value):
                log(f"warning: step {state.step:,}: {self.monitor} is {value}, which is no best")
            state.failures += 1
            if self.out_of_patience(module):
                trainer.run.stop_reason = "patience"
                trainer.should_stop = True
        trainer.end_validation()
        trainer.run.pause("validation", time.perf_counter() - begun)

    def _is_better(self, value: float, best: float) -> bool:
        return loss_of(self.monitor, value) < loss_of(self.monitor, best)
