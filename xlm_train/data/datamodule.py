"""What one process reads at each step: its slots, straight from the mapped corpus, as a Lightning data module."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from xlm_train.data.concatenation import JoinedPairs
from xlm_train.data.corpus import Corpus, TokenStream
from xlm_train.data.manifest import languages_of
from xlm_train.data.noise import generator_of
from xlm_train.data.order import Order, Slot, Stream, slots_of_rank


class Batch(Protocol):
    """What an objective makes of one slot: tensors that can be moved together."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return it on a device."""

    def pin_memory(self) -> Self:
        """Return it in memory that a GPU can read by itself."""


@dataclass(frozen=True)
class TensorBatch:
    """A batch whose fields are tensors and plain values: what moves are the tensors."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return it on a device."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return it in memory that a GPU can read by itself."""
        return self._changed(torch.Tensor.pin_memory)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


class Reader(Protocol):
    """The half of an objective that reads: see objectives/objective.py."""

    @property
    def streams(self) -> Sequence[Stream]:
        """What the order divides into slots."""

    def batch(self, slot: Slot, generator: np.random.Generator) -> Batch:
        """Make a slot's batch, on the CPU."""

    def texts(self, slot: Slot) -> Sequence[tuple[str, NDArray[np.int64]]]:
        """List what a slot reads, for a person: the name of each unit and its token ids."""


@dataclass(frozen=True)
class SlotBatch:
    """One slot, ready to train on.

    Args:
        number: of the slot within the step, the same on any number of processes.
        stream: number of its stream among the objective's, for the report.
        inputs: what the objective made of it.
        weight: of its loss.
    """

    number: int
    stream: int
    inputs: Batch
    weight: float = 1.0


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
        order: which units make up a step.
        make_batch: what the objective makes of a slot, given its random generator.
        numbers: slots of a step that this process takes.
        start: first step.
        pin: hand over pinned memory, for a GPU.
    """

    def __init__(
        self,
        order: Order,
        make_batch: Callable[[Slot, np.random.Generator], Batch],
        numbers: range,
        start: int = 0,
        pin: bool = False,
    ) -> None:
        self.order = order
        self.make_batch = make_batch
        self.numbers = numbers
        self.start = start
        self.pin = pin
        self.seconds = 0.0  # spent reading, since somebody set it to 0
        self._streams = {name: number for number, name in enumerate(order.streams)}

    def read(self, step: int) -> StepBatch:
        """Read this process's share of one step."""
        slots = tuple(
            SlotBatch(
                slot.number,
                self._streams[slot.stream],
                self.make_batch(slot, generator_of(self.order.seed, step, slot.number)),
                slot.weight,
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


def validation_texts(corpus: Corpus, streams: Collection[str]) -> dict[str, TokenStream | JoinedPairs]:
    """Find the text to score a run on: of each language and pair that it reads, as far as there is some.

    Args:
        corpus: Opened.
        streams: What the run reads. A name that is neither a language nor a pair is read from all languages.
    """
    codes = {name: languages_of(name) or () for name in streams}
    pairs = {
        name: "-".join(sorted(both)) for name, both in codes.items() if both and {*both} <= corpus.languages.keys()
    }
    texts: dict[str, TokenStream | JoinedPairs] = {}
    if len(pairs) < len(streams):
        texts = {lang: corpus.stream("valid", lang) for lang in corpus.languages if corpus.has("valid", lang)}
    found = [name for name, pair in pairs.items() if pair in corpus.pair_names("valid")]
    return texts | {name: JoinedPairs(corpus, "valid", name, corpus.languages) for name in found}


class CorpusDataModule(pl.LightningDataModule):
    """A corpus in the order of a run.

    What comes next is a function of the step alone, so there is no state to save: the loader begins at the step that the
    module's train state has reached.

    Args:
        corpus: what is read.
        reader: the objective that reads it.
        slots: slots of a global step.
        bptt: tokens of a window.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        pin: hand over pinned memory, for a GPU.
    """

    def __init__(
        self,
        corpus: Corpus,
        reader: Reader,
        slots: int,
        bptt: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.reader = reader
        self.order = Order(reader.streams, slots, seed)
        self.bptt = bptt
        self.numbers = slots_of_rank(slots, rank, world_size)
        self.pin = pin
        self.batches: StepBatches | None = None

    @property
    def languages(self) -> dict[str, int]:
        """Code -> id."""
        return self.corpus.languages

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a global step reads, on average where slots differ."""
        return self.order.tokens_per_step

    @property
    def validation_texts(self) -> dict[str, TokenStream | JoinedPairs]:
        """The validation text of each language and pair that is read."""
        return validation_texts(self.corpus, self.order.streams)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """Return the batches from the next step on."""
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        start = 0 if module is None else module.state.step
        self.batches = StepBatches(self.order, self.reader.batch, self.numbers, start, self.pin)
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
