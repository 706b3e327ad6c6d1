"""What one process reads at each step: its slots' tokens, straight from the mapped corpus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from xlm_train.data.corpus import TokenStream
from xlm_train.data.order import Order, slots_of_rank


@dataclass(frozen=True)
class SlotBatch:
    """One slot. number: within the step, the same on any number of processes. tokens_BT: (slot_streams, bptt) int64 ids."""

    number: int
    language: int
    tokens_BT: Tensor


@dataclass(frozen=True)
class StepBatch:
    """One process's slots of one global step."""

    step: int
    slots: tuple[SlotBatch, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> StepBatch:
        return replace(
            self,
            slots=tuple(replace(s, tokens_BT=s.tokens_BT.to(device, non_blocking=non_blocking)) for s in self.slots),
        )

    def pin_memory(self) -> StepBatch:
        return replace(self, slots=tuple(replace(s, tokens_BT=s.tokens_BT.pin_memory()) for s in self.slots))


class StepBatches(IterableDataset[StepBatch]):
    """Batches of steps start .. stop-1 for one process.

    `start` is set before iteration begins (a resumed run's next step); nothing else carries over. Reading is copying
    a few pages out of the page cache: microseconds, so it happens in the training process, without workers.
    """

    def __init__(
        self,
        streams: Mapping[str, TokenStream],
        languages: Mapping[str, int],
        order: Order,
        bptt: int,
        rank: int,
        world_size: int,
        pin: bool = False,
    ) -> None:
        self.streams = streams
        self.languages = languages
        self.order = order
        self.bptt = bptt
        self.numbers = slots_of_rank(order.slots, rank, world_size)
        self.start = 0
        self.stop = 0
        self.pin = pin
        self.seconds = 0.0  # spent reading, since somebody set it to 0

    def read(self, step: int) -> StepBatch:
        """This process's share of one step."""
        slots = tuple(
            SlotBatch(
                slot.number,
                self.languages[slot.language],
                torch.from_numpy(self.streams[slot.language].windows(slot.windows, self.bptt)),
            )
            for slot in self.order.step(step, self.numbers)
        )
        batch = StepBatch(step, slots)
        return batch.pin_memory() if self.pin else batch

    def __iter__(self) -> Iterator[StepBatch]:
        for step in range(self.start, self.stop):
            start = time.perf_counter()
            batch = self.read(step)
            self.seconds += time.perf_counter() - start
            yield batch
