"""Losses and gradients that are not finite, and losses that jump: finding them, telling them, going back before them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from xlm_train.data.datamodule import CorpusDataModule
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import ConfigError, UserError
from xlm_train.runtime.files import atomic_write
from xlm_train.runtime.processes import is_first_process
from xlm_train.runtime.run_folder import RunFolder
from xlm_train.text.bpe import decode_ids
from xlm_train.text.vocabulary import EOS, Vocabulary
from xlm_train.training.loss_buffer import SlotLoss, StepLosses

POLICIES = ("stop", "skip", "rollback")
LEAST_STEPS = 20  # good ones before a spike can be told
NORMAL = 1.4826  # median absolute deviation of a normal distribution, times this, is its standard deviation


class TrainingStopped(UserError):
    """Training cannot go on: the last checkpoint is intact, the message says what happened."""


@dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient is not finite, or whose loss spikes.

    Args:
        step: its number.
        reason: for a person to read.
        slots: those to blame; empty where that is not known.
    """

    step: int
    reason: str
    slots: tuple[int, ...] = ()


class NonFiniteOrSpike(TrainingStopped):
    """Raised on all processes alike for a bad step; the policy decides what follows (see `roll_back`)."""

    def __init__(self, bad: BadStep) -> None:
        self.bad = bad
        super().__init__(f"step {bad.step}: {bad.reason}")


class AnomalyDetector(pl.Callback):
    """Tells bad steps from good ones; all processes see the same numbers and so say the same.

    Args:
        policy: what is done about a bad step: "stop", "skip" (do not apply it; costs a wait for the GPU every step) or
            "rollback" (go on from the last checkpoint without it).
        spike_z: a stream's mean loss is a spike from so many robust standard deviations above the median of its last
            `window` good steps (Iglewicz & Hoaglin 1993: median and median absolute deviation, which the spikes
            themselves do not move); None: only numbers that are not finite are bad.
        window: good steps that make up the history.
        max_in_a_row: skipped steps in a row, or rollbacks without a new checkpoint between them, that stop the run.

    Raises:
        ConfigError: with every value that cannot work.
    """

    def __init__(
        self, policy: str = "stop", spike_z: float | None = None, window: int = 128, max_in_a_row: int = 20
    ) -> None:
        problems = []
        if policy not in POLICIES:
            problems.append(f"policy={policy}: must be one of {', '.join(POLICIES)}")
        if spike_z is not None and spike_z < 0:
            problems.append(f"spike_z={spike_z}: must be at least 0")
        least = 1 if spike_z is None else LEAST_STEPS
        if window < least:
            problems.append(
                f"window={window}: must be at least {least}"
                + (f": a spike is told from at least {LEAST_STEPS} good steps" if least > 1 else "")
            )
        if max_in_a_row < 1:
            problems.append(f"max_in_a_row={max_in_a_row}: must be at least 1")
        if problems:
            raise ConfigError(problems)
        self.policy = policy
        self.spike_z = spike_z
        self.window = window
        self.max_in_a_row = max_in_a_row
        self.history: dict[int, list[float]] = {}  # good losses of each stream, by its number
        self._trainer: Any = None

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        """Take the place of the module's own detector, which only stops."""
        self._trainer = trainer
        module.detector = self

    def state_dict(self) -> dict[str, Any]:
        """Return the history, so that a resumed run checks alike."""
        return {"history": {stream: list(losses) for stream, losses in self.history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's history."""
        self.history = {int(stream): list(losses) for stream, losses in state_dict["history"].items()}

    @property
    def at_once(self) -> bool:
        """Whether a step is checked before its update is applied: the price is waiting for the device every step."""
        return self.policy == "skip"

    def check(
        self, row: StepLosses, slots_of: Callable[[], Sequence[SlotLoss]], float16: bool = False
    ) -> BadStep | None:
        """Say what is wrong with a step; None where nothing is: then its losses join the history.

        Args:
            row: the step's losses.
            slots_of: gives the loss of each of its slots; a collective, which only a bad step needs.
            float16: a gradient that is not finite is an overflow, which the loss scale deals with.
        """
        if not all(math.isfinite(total) for total, _ in row.streams.values()):
            broken = tuple(one.slot for one in slots_of() if not math.isfinite(one.loss))
            return BadStep(row.step, f"the loss of {_slots(broken)} is not finite", broken)
        if not float16 and not math.isfinite(row.grad_norm):
            return BadStep(row.step, f"the gradient is not finite (norm {row.grad_norm})")
        if self.spike_z is None:
            return None
        means = row.by_stream()
        for stream, loss in means.items():
            before = self.history.get(stream, [])
            if (z := robust_z(loss, before)) > self.spike_z:
                worst = sorted((one for one in slots_of() if one.stream == stream), key=lambda one: -one.loss)
                reason = (
                    f"loss spike: {loss:.4g} where the last {len(before)} good steps have a median of"
                    f" {statistics.median(before):.4g} ({z:.1f} robust deviations, allowed {self.spike_z:g})"
                )
                return BadStep(row.step, reason, tuple(one.slot for one in worst))
        for stream, loss in means.items():
            self.history[stream] = [*self.history.get(stream, []), loss][-self.window :]
        return None

    def report(self, bad: BadStep, action: str) -> None:
        """Tell of a bad step of the run that this callback takes part in."""
        if self._trainer is not None:
            report(bad, action, self._trainer.run.folder, self._trainer.datamodule)


def robust_z(value: float, history: Sequence[float]) -> float:
    """Return the deviations of `value` above the median of `history`; 0 where that is too short to tell.

    The deviation is at least a thousandth of the median, so that a history without any spread tells no spikes of
    rounding.
    """
    if len(history) < LEAST_STEPS:
        return 0.0
    median = statistics.median(history)
    deviation = NORMAL * statistics.median(abs(x - median) for x in history)
    return (value - median) / max(deviation, 1e-3 * abs(median), 1e-12)


def report(bad: BadStep, action: str, run: RunFolder, data: CorpusDataModule) -> None:
    """Record a bad step, and write the text that it read into a file of the run. Nothing but in the first process.

    Args:
        bad: the step.
        action: what becomes of it, one of POLICIES; "stop" warns of nothing, as an error follows.
        run: the run's folder.
        data: reads the step's text again.
    """
    if not is_first_process():
        return
    run.record("bad_batch", bad.step, reason=bad.reason, slots=list(bad.slots), action=action)
    file = run.bad_batch(bad.step)
    try:
        file.parent.mkdir(exist_ok=True)
        with atomic_write(file) as out:
            out.write(text_of(bad, data).encode())
    except (OSError, UserError) as failure:  # the run is worth more than its record
        log(f"warning: the text of step {bad.step} is not kept: {failure}")
    if action != "stop":
        run.record(action, bad.step)
        log(
            f"warning: step {bad.step}: {bad.reason}: left out by callbacks.guard.policy={action}; its text is in {file}"
        )


def roll_back(
    error: NonFiniteOrSpike,
    detector: AnomalyDetector,
    run: RunFolder,
    data: CorpusDataModule,
    newest: Path | None,
) -> None:
    """Exclude the bad step, so that the next attempt goes on from the last checkpoint without it. All processes alike.

    Args:
        error: from the attempt.
        detector: whose policy counts.
        run: the run's folder.
        data: to write the text of the step.
        newest: the checkpoint from which the attempt began.

    Raises:
        TrainingStopped: the policy is to stop, or rollbacks have become too many; names the file with the step's text.
    """
    bad, resumed_at = error.bad, 0 if newest is None else checkpoint_file.step_of(newest)
    since = sum(step >= resumed_at for step in run.excluded)  # rollbacks without a new checkpoint between them
    action = detector.policy if since < detector.max_in_a_row else "stop"
    report(bad, action, run, data)
    if action != "rollback":
        raise TrainingStopped(
            f"step {bad.step}: {bad.reason}: training has diverged; the last checkpoint is intact; what the step read"
            f" is in {run.bad_batch(bad.step)}. "
            + (
                f"That is one more than callbacks.guard.max_in_a_row={detector.max_in_a_row} rollbacks since step"
                f" {resumed_at}."
                if since
                else "callbacks.guard.policy=skip or rollback goes on without such steps."
            )
            + " A lower optimizer.lr or a longer schedule.warmup_updates may prevent them"
        )
    run.exclude(bad.step)


def text_of(bad: BadStep, data: CorpusDataModule) -> str:
    """Show what a bad step read: the units of the slots to blame, or of all where none is known; a sentence a line.

    Windows are numbered as in `data/corpus.py`.
    """
    vocabulary = Vocabulary.from_file(data.corpus.vocab_path)
    lines = [f"step {bad.step}: {bad.reason}", ""]
    for slot in data.order.step(bad.step):
        if bad.slots and slot.number not in bad.slots:
            continue
        lines.append(f"## slot {slot.number}: {slot.stream}")
        for name, tokens in data.reader.texts(slot):
            lines += ["", f"### {name}"]
            sentence: list[int] = []
            for token in [*tokens.tolist(), EOS]:
                if token != EOS:
                    sentence.append(token)
                elif sentence:
                    lines.append(decode_ids(sentence, vocabulary))
                    sentence = []
        lines.append("")
    return "\n".join(lines) + "\n"


def _slots(numbers: Sequence[int]) -> str:
    return f"slot{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
