"""Perplexity on the validation split, the best checkpoint, and stopping when it no longer falls."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from xlm_train.data.concatenation import JoinedPairs
from xlm_train.data.corpus import Corpus, TokenStream
from xlm_train.data.datamodule import validation_texts
from xlm_train.evaluation import higher_is_better
from xlm_train.evaluation.pairs import batches_of, score_pairs
from xlm_train.evaluation.perplexity import WINDOW_SCORES, Score
from xlm_train.objectives.objective import Objective
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, at_least
from xlm_train.training.callbacks.metrics import send
from xlm_train.training.module import LanguageModel
from xlm_train.training.phases import Phase, StepCallback
from xlm_train.training.trainer import Trainer


def metrics_of(corpus: Corpus, objective: Objective) -> list[str]:
    """List the metrics that a validation of what an objective learns gives; none where there is no text for it."""
    texts = validation_texts(corpus, [stream.name for stream in objective.streams])
    return _window_metrics(texts) if texts else []


def _window_metrics(texts: Iterable[str]) -> list[str]:
    ends = [f"_{text}" for text in texts]
    return ["val/ppl", "val/acc", *(f"val/{kind}{end}" for kind in ("loss", "ppl", "acc") for end in ends)]


class Validation(StepCallback):
    """Scores the validation text every so many steps and once at the end.

    The objective says how. The processes divide windows and pairs among themselves; three sums a text are exchanged, so
    all of them decide alike.
    The hooks of Lightning's validation (`on_validation_start` ... `on_validation_end`) fire for every callback, so stock
    ones such as EarlyStopping, ModelCheckpoint and EMAWeightAveraging act as they do after Lightning's own loop.

    Args:
        every_n_steps: how often.
        patience: failures in a row that are allowed; the next one stops the run, as the original's stopping criterion
            does. A failure is a value of `monitor` not strictly better than the best. None: never stop.
        batch_windows: windows scored in one forward pass.
        monitor: the metric that decides which checkpoint is the best. Lower is better, but for accuracies.

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
    ) -> None:
        at_least(1, every_n_steps=every_n_steps, batch_windows=batch_windows)
        if patience is not None:
            at_least(0, patience=patience)
        self.every_n_steps = every_n_steps
        self.patience = patience
        self.batch_windows = batch_windows
        self.monitor = monitor

    def setup(self, trainer: Trainer, module: LanguageModel, stage: str) -> None:  # type: ignore[override]
        """Find the text, and whether it can tell what is monitored.

        Raises:
            ConfigError: no validation gives the monitored metric, or the objective's kind of score is not known.
        """
        if (kind := module.objective.evaluation) not in WINDOW_SCORES:
            raise ConfigError(
                f"objective: its evaluation is {kind!r}, known are {', '.join(WINDOW_SCORES)}: callbacks.validation=null"
            )
        self.texts = trainer.data.validation_texts
        longest = module.model.shape.max_positions
        for name, text in list(self.texts.items()):
            if isinstance(text, JoinedPairs) and (long := text.n - sum(map(len, batches_of(text, longest)))):
                log(
                    f"validation of {name}: {long:,} of {text.n:,} pairs have a side beyond {longest} positions and are left out"
                )
                if long == text.n:
                    del self.texts[name]
        if self.texts and self.monitor not in (names := _window_metrics(self.texts)):
            raise ConfigError(f"callbacks.validation.monitor={self.monitor}: must be one of {', '.join(names)}")

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
        if self.out_of_patience(module):
            log("this run has stopped: validation no longer improved; a larger callbacks.validation.patience goes on")
            trainer.run.stop_reason = "patience"
            trainer.should_stop = True

    def on_step_end(self, trainer: Trainer, module: LanguageModel) -> None:
        """Validate where that is due. A collective."""
        state = module.state
        if not self.texts or (state.step % self.every_n_steps and state.step != module.stop):
            return
        begun = time.perf_counter()
        with trainer.validation() as logged:
            state.validation = self.validate(trainer, module)
        send(trainer, module, {**state.validation, **logged}, state.step)
        value = state.validation[self.monitor]
        if math.isfinite(value) and (state.best_metric is None or self._is_better(value, state.best_metric)):
            state.best_metric, state.best_step, state.failures = value, state.step, 0
        else:
            state.failures += 1
            if self.out_of_patience(module):
                trainer.run.stop_reason = "patience"
                trainer.should_stop = True
        trainer.end_validation()
        trainer.run.pause("validation", time.perf_counter() - begun)

    def _is_better(self, value: float, best: float) -> bool:
        return value > best if higher_is_better(self.monitor) else value < best

    def validate(self, trainer: Trainer, module: LanguageModel) -> dict[str, float]:
        """Score every text: val/loss_NAME, val/ppl_NAME, val/acc_NAME, and the means val/ppl, val/acc. A collective.

        The means are over the languages, or over the pairs where there are no languages, as the original's are.
        """
        metrics: dict[str, float] = {}
        scores: dict[str, Score] = {}
        for name, text in self.texts.items():
            with trainer.precision_plugin.forward_context():
                sums = self._sums(trainer, module, name, text)
            if trainer.world_size > 1:
                torch.distributed.all_reduce(sums)
            score = scores[name] = Score.from_sums(sums)
            metrics |= {
                f"val/loss_{name}": score.loss,
                f"val/ppl_{name}": score.perplexity,
                f"val/acc_{name}": score.accuracy,
            }
        averaged = [score for name, score in scores.items() if name in trainer.data.languages] or list(scores.values())
        metrics["val/ppl"] = math.fsum(score.perplexity for score in averaged) / len(averaged)
        metrics["val/acc"] = math.fsum(score.accuracy for score in averaged) / len(averaged)
        return metrics

    def _sums(self, trainer: Trainer, module: LanguageModel, name: str, text: TokenStream | JoinedPairs) -> Tensor:
        """This process's share of the sums behind a text's score."""
        rank, world_size = trainer.global_rank, trainer.world_size
        if isinstance(text, JoinedPairs):
            return score_pairs(module.model, text, (rank, world_size), device=module.device)
        bptt, language = trainer.data.bptt, trainer.data.languages[name]
        count = text.n_windows(bptt)
        mine = range(rank * count // world_size, (rank + 1) * count // world_size)
        score_windows = WINDOW_SCORES[module.objective.evaluation]
        return score_windows(module.model, text, bptt, language, mine, self.batch_windows, module.device)
