"""Which units of which stream make up step t: a pure function of (seed, t).

A step is `slots` slots; a slot is some units of one stream. A stream is what an objective reads: the windows of a
language, or batches of its sentences, or of sentence pairs. There is no state (only a cache of what was drawn last):
what came before step t is known in closed form, so resuming needs the step number alone, and any number of processes
read the same tokens in the same step.

Quota: of the first x = t S slots the first stream has had floor(x p), the last stream the rest. (With more than
two, the second takes its share of what the first left, and so on: taking floor(x p_s) for each of them would let the
rest go negative in a step.) So counts never fall, and n streams are always within n - 1 slots of their
shares. Within a step slots are in the order of the streams. Each stream is read through passes of its own; in
a pass every unit comes exactly once, in an order drawn again for each pass by a keyed permutation that is computed
point by point (no array of corpus length).

Where streams take turns instead (see turns.py), all slots of a step are of one stream, as an update of the original's.

A difference from the original, which draws a language or a pair at random for every update on every GPU, and shuffles
on each GPU for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from xlm_train.data.permutation import permute
from xlm_train.data.turns import UNWEIGHTED, Turns, Weight
from xlm_train.runtime.console import counted
from xlm_train.runtime.errors import ConfigError

PIECE = 1024  # units of a pass drawn in one go: drawing a slot's few takes nearly as long


def language_shares(sentences: Mapping[str, int], alpha: float) -> dict[str, Fraction]:
    """Compute the share of each language: p^alpha over sentence counts, normalised.

    Args:
        sentences: number of sentences of each language.
        alpha: 0 is uniform, 1 proportional.

    Returns:
        Exact fractions, so that quotas at step 10^9 are computed without rounding; languages in the mapping's order.

    Source: Lample & Conneau 2019, section 3.1 (the formula).
    """
    raw = {lang: Fraction(count**alpha) for lang, count in sentences.items()}
    total = sum(raw.values())
    # rounded to 2^-40 so that quota arithmetic stays in small integers whatever alpha gave
    return {lang: Fraction(round(value / total * 2**40), 2**40) for lang, value in raw.items()}


def slots_of_rank(slots: int, rank: int, world_size: int) -> range:
    """Return the slots of a step that one rank takes: floor(rS/W) .. floor((r+1)S/W) - 1, even or uneven.

    Args:
        slots: slots of a global step, S.
        rank: global rank, r.
        world_size: number of processes, W.
    """
    return range(rank * slots // world_size, (rank + 1) * slots // world_size)


@dataclass(frozen=True)
class Stream:
    """What an objective reads through, pass after pass.

    Args:
        name: The key of its permutations, and of its losses in reports: a language ("de"), a pair ("de-en") or another
            name of the objective's.
        n_units: Windows, or sentence batches, of one pass.
        units_per_slot: data.slot_streams of windows, 1 of sentence batches.
        tokens_per_slot: Tokens that a slot reads: the mean over a pass, where slots differ.
        share: Of all slots, among the shares of the other streams; they need not sum to 1.
        padding: Share of padding in what a slot reads, on average.
        weight: Of its loss.
        turn: Where streams take turns, the group of streams that it comes in; None: it shares steps with the others.
    """

    name: str
    n_units: int
    units_per_slot: int
    tokens_per_slot: float
    share: Fraction
    padding: float = 0.0
    weight: Weight = UNWEIGHTED
    turn: str | None = None


@dataclass(frozen=True)
class Slot:
    """One slot of a step: a micro-batch of one stream.

    Args:
        step: the step.
        number: of the slot within the step, over all processes.
        stream: name of its stream.
        units: (units_per_slot,) numbers of the stream's windows or sentence batches.
        passes: (units_per_slot,) the pass that each of them belongs to.
        weight: of its loss.
    """

    step: int
    number: int
    stream: str
    units: NDArray[np.int64]
    passes: NDArray[np.int64]
    weight: float = 1.0


class Order:
    """The order of a whole training run.

    Args:
        streams: What the objective reads; their order is that of the slots within a step.
        slots: Slots of a global step.
        seed: Of the order.

    Raises:
        ConfigError: There is no stream; one has no unit or the name of another one; a step has no slot; or some
            streams take turns and others do not.
    """

    def __init__(self, streams: Sequence[Stream], slots: int, seed: int) -> None:
        problems = [f"{s.name}: the training corpus has nothing to read" for s in streams if s.n_units < 1]
        if not streams:
            problems.append("objective: it reads nothing: leave its lists of languages, pairs or directions at null")
        if slots < 1 or any(s.units_per_slot < 1 for s in streams):
            problems.append(f"data.slots={slots} and data.slot_streams must be at least 1")
        if len({s.name for s in streams}) < len(streams):
            problems.append(f"objective: two streams have one name among {', '.join(s.name for s in streams)}")
        groups: dict[str, dict[str, Weight]] = {}
        for stream in streams:
            if stream.turn is not None:
                groups.setdefault(stream.turn, {})[stream.name] = stream.weight
        taking = sum(map(len, groups.values()))
        if 0 < taking < len(streams):
            problems.append("objective: some of its streams take turns and others do not")
        if problems:
            raise ConfigError(problems)
        self._turns = Turns(groups, seed) if groups else None
        self.streams = {stream.name: stream for stream in streams}
        self.slots = slots
        self.seed = seed
        self._drawn: dict[str, tuple[tuple[int, int], NDArray[np.int64]]] = {}  # the last piece of each stream

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a global step reads, on average where slots differ."""
        streams = self.streams.values()
        shares = sum(stream.share for stream in streams)
        return round(self.slots * sum(s.share / shares * Fraction(s.tokens_per_slot) for s in streams))

    def batches(self) -> list[str]:
        """Describe the streams that are read in batches of like lengths, for a person."""
        return [
            f"{s.name}: {counted(s.n_units, 'batch')} a pass, {s.tokens_per_slot:,.0f} tokens each, "
            f"{s.padding:.1%} of a batch padding"
            for s in self.streams.values()
            if s.padding
        ]

    def slots_before(self, step: int) -> dict[str, int]:
        """Count the slots that each stream has had in steps 0 .. step-1, in closed form."""
        if self._turns is not None:
            return {name: steps * self.slots for name, steps in self._turns.before(step).items()}
        counts: dict[str, int] = {}
        *others, last = self.streams.values()
        left, left_share = step * self.slots, Fraction(sum(stream.share for stream in self.streams.values()))
        for stream in others:  # floor: nothing is negative
            counts[stream.name] = int(left * stream.share / left_share) if left_share else 0
            left -= counts[stream.name]
            left_share -= stream.share
        counts[last.name] = left
        return counts

    def step(self, step: int, numbers: range | None = None) -> list[Slot]:
        """Return the slots of a step; nothing is done for others.

        Args:
            step: the step.
            numbers: only these of its slots, one after the other (a rank's share); all if not given.
        """
        numbers = range(self.slots) if numbers is None else numbers
        before, after = self.slots_before(step), self.slots_before(step + 1)
        turn = None if self._turns is None else self._turns.at(step)
        found, first = [], 0  # number of the stream's first slot in this step
        for name, stream in self.streams.items():
            end = first + after[name] - before[name]
            weight = stream.weight.at(step) if turn is None else turn[1]
            for number in range(max(first, numbers.start), min(end, numbers.stop)):
                found.append(Slot(step, number, name, *self._units(stream, before[name] + number - first), weight))
            first = end
        return found

    def _units(self, stream: Stream, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Units and passes of a stream's slot `position`, counted over all its passes."""
        place = position * stream.units_per_slot
        end = place + stream.units_per_slot
        units, passes = [], []
        while place < end:
            number, index = divmod(place, stream.n_units)
            part = self._piece(stream, number, index // PIECE)[index % PIECE :][: end - place]
            units.append(part)
            passes.append(np.full(len(part), number, dtype=np.int64))
            place += len(part)
        return np.concatenate(units), np.concatenate(passes)

    def _piece(self, stream: Stream, number: int, piece: int) -> NDArray[np.int64]:
        """Units at the places piece * PIECE .. of a pass, at most PIECE of them."""
        at, units = self._drawn.get(stream.name, (None, None))
        if units is None or at != (number, piece):
            places = np.arange(piece * PIECE, min((piece + 1) * PIECE, stream.n_units), dtype=np.int64)
            units = permute(places, stream.n_units, key=(self.seed, stream.name, number))
            self._drawn[stream.name] = (number, piece), units
        return units
