"""What one process reads at each step: its slots, straight from the mapped corpus, as a Lightning data module."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from xlm_train.data.corpus import Corpus, TokenStream
from xlm_train.data.noise import generator_of
from xlm_train.data.order import Order, Slot, language_shares, slots_of_rank


class Batch(Protocol):
    """What an objective makes of one slot: tensors that can be moved together."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return it on a device."""

    def pin_memory(self) -> Self:
        """Return it in memory that a GPU can read by itself."""


@dataclass(frozen=True)
class SlotBatch:
    """One slot, ready to train on.

    Args:
        number: of the slot within the step, the same on any number of processes.
        language: id of its language, for the report.
        inputs: what the objective made of it.
    """

    number: int
    language: int
    inputs: Batch


@dataclass(frozen=True)
class StepBatch:
    """One process's slots of one global step."""

    step: int
    slots: tuple[SlotBatch, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> StepBatch:
        """Return it on a device."""
        return replace(self, slots=tuple(replace(s, inputs=s.inputs.to(device, non_blocking)) for s in self.slots))

    def pin_memory(self) -> StepBatch:
        """Return it in memory that a GPU can read by itself."""
        return replace(self, slots=tuple(replace(s, inputs=s.inputs.pin_memory()) for s in self.slots))


class StepBatches(IterableDataset[StepBatch]):
    """Batches of one process from a step on, without an end: the module says when a run is over.

    Reading is copying a few pages out of the page cache: microseconds, so it happens in the training process, without
    workers.

    Args:
        order: which windows make up a step.
        make_batch: what the objective makes of a slot, given its random generator.
        languages: code -> id.
        numbers: slots of a step that this process takes.
        start: first step.
        pin: hand over pinned memory, for a GPU.
    """

    def __init__(
        self,
        order: Order,
        make_batch: Callable[[Slot, np.random.Generator], Batch],
        languages: Mapping[str, int],
        numbers: range,
        start: int = 0,
        pin: bool = False,
    ) -> None:
        self.order = order
        self.make_batch = make_batch
        self.languages = languages
        self.numbers = numbers
        self.start = start
        self.pin = pin
        self.seconds = 0.0  # spent reading, since somebody set it to 0

    def read(self, step: int) -> StepBatch:
        """Read this process's share of one step."""
        slots = tuple(
            SlotBatch(
                slot.number,
                self.languages[slot.language],
                self.make_batch(slot, generator_of(self.order.seed, step, slot.number)),
            )
            for slot in self.order.step(step, self.numbers)
        )
        batch = StepBatch(step, slots)
        return batch.pin_memory() if self.pin else batch

    def __iter__(self) -> Iterator[StepBatch]:
        for step in itertools.count(self.start):
            begun = time.perf_counter()
            batch = self.read(step)
            self.seconds += time.perf_counter() - begun
            yield batch


def order_of(
    text: Mapping[str, TokenStream], bptt: int, lang_alpha: float, slots: int, slot_streams: int, seed: int
) -> Order:
    """Make the order of a run over the training streams of a corpus.

    Args:
        text: stream of each language, in id order.
        bptt: tokens of a window.
        lang_alpha: a language's share is p^lang_alpha over sentences.
        slots: slots of a global step.
        slot_streams: windows of a slot.
        seed: of the order.
    """
    shares = language_shares({lang: stream.n_sentences for lang, stream in text.items()}, lang_alpha)
    return Order({lang: stream.n_windows(bptt) for lang, stream in text.items()}, shares, slots, slot_streams, seed)


class CorpusDataModule(pl.LightningDataModule):
    """A corpus in the order of a run.

    What comes next is a function of the step alone, so there is no state to save: the loader begins at the step that the
    module's train state has reached.

    Args:
        corpus: what is read.
        order: which windows make up a step.
        make_batch: what the objective makes of a slot.
        bptt: tokens of a window.
        rank: of this process.
        world_size: number of processes.
        pin: hand over pinned memory, for a GPU.
    """

    def __init__(
        self,
        corpus: Corpus,
        order: Order,
        make_batch: Callable[[Slot, np.random.Generator], Batch],
        bptt: int,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.order = order
        self.make_batch = make_batch
        self.bptt = bptt
        self.numbers = slots_of_rank(order.slots, rank, world_size)
        self.pin = pin
        self.batches: StepBatches | None = None

    @property
    def languages(self) -> dict[str, int]:
        """Code -> id."""
        return self.corpus.languages

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a global step reads."""
        return self.order.slots * self.order.slot_streams * self.bptt

    @property
    def validation_streams(self) -> dict[str, TokenStream]:
        """The validation text of each language that has some."""
        return {lang: self.corpus.stream("valid", lang) for lang in self.languages if self.corpus.has("valid", lang)}

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """Return the batches from the next step on."""
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        start = 0 if module is None else module.state.step
        self.batches = StepBatches(self.order, self.make_batch, self.languages, self.numbers, start, self.pin)
        return DataLoader(self.batches, batch_size=None)

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Copy from pinned memory, which does not wait for the step before."""
        return batch.to(device, non_blocking=True)

    def seconds_reading(self) -> float:
        """Return the seconds spent reading since the last call."""
        if self.batches is None:
            return 0.0
        seconds, self.batches.seconds = self.batches.seconds, 0.0
        return seconds
