"""The order of training is a pure function of (seed, step), on any number of processes."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xlm_train.data.corpus import Corpus
from xlm_train.data.datamodule import SlotBatch, StepBatches
from xlm_train.data.order import PIECE, Order, Slot, Stream, language_shares, slots_of_rank
from xlm_train.data.permutation import permute
from xlm_train.data.training_text import TrainingText
from xlm_train.objectives.clm import CausalLM, Windows
from xlm_train.runtime.errors import ConfigError

shapes = st.fixed_dictionaries(
    {
        "windows": st.lists(st.integers(1, 90), min_size=1, max_size=4),
        "slots": st.integers(1, 9),
        "slot_streams": st.integers(1, 7),
        "alpha": st.sampled_from([0.0, 0.5, 0.7, 1.0]),
        "seed": st.integers(0, 2**31),
    }
)


def make(windows: list[int], slots: int, slot_streams: int, alpha: float, seed: int) -> Order:
    languages = dict(zip(["de", "en", "fr", "ro"], windows, strict=False))
    shares = language_shares(languages, alpha)
    return Order(
        [Stream(lang, n, slot_streams, slot_streams, shares[lang]) for lang, n in languages.items()], slots, seed
    )


WORLDS = (1, 2, 4, 7, 8)


def read(order: Order, first: int, last: int, world_size: int) -> list[tuple[str, int, int]]:
    """(stream, pass, window) in global order, as `world_size` processes read them between two steps."""
    out = []
    for step in range(first, last):
        for rank in range(world_size):
            for slot in order.step(step, slots_of_rank(order.slots, rank, world_size)):
                out += [(slot.stream, int(p), int(w)) for p, w in zip(slot.passes, slot.units, strict=True)]
    return out


@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 5))
@settings(max_examples=60)
def test_permutation_is_one(n: int, seed: int, number: int) -> None:
    image = permute(np.arange(n), n, (seed, "en", number))
    assert sorted(image.tolist()) == list(range(n))


def test_permutation_looks_random() -> None:
    n = 10_000
    image = permute(np.arange(n), n, (0, "en", 0)).astype(float)
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05  # 5 standard deviations
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    fixed = int((image == np.arange(n)).sum())  # Poisson with mean 1
    assert fixed < 10


def test_passes_and_seeds_and_languages_differ() -> None:
    keys = [(0, "en", 0), (0, "en", 1), (1, "en", 0), (0, "de", 0)]
    images = [tuple(permute(np.arange(50), 50, key)) for key in keys]
    assert len(set(images)) == len(keys)


@given(shapes, st.integers(1, 25))
@settings(max_examples=80)
def test_any_number_of_processes_reads_the_same(shape: dict, steps: int) -> None:
    order = make(**shape)
    alone = read(order, 0, steps, 1)
    for world_size in WORLDS[1:]:
        if world_size <= order.slots:
            assert read(order, 0, steps, world_size) == alone


@given(shapes, st.integers(2, 30), st.data())
@settings(max_examples=80)
def test_resuming_needs_the_step_alone(shape: dict, steps: int, data: st.DataObject) -> None:
    order = make(**shape)
    middle = data.draw(st.integers(0, steps))
    assert read(order, 0, middle, 1) + read(make(**shape), middle, steps, 1) == read(order, 0, steps, 1)


@given(shapes)
@settings(max_examples=80)
def test_every_window_once_a_pass(shape: dict) -> None:
    order = make(**shape)
    seen: dict[tuple[str, int], list[int]] = {}
    steps = 2 + 3 * max(shape["windows"]) * len(shape["windows"]) // (order.slots * shape["slot_streams"])
    for lang, number, window in read(order, 0, steps, 1):
        seen.setdefault((lang, number), []).append(window)
    for (lang, number), windows in seen.items():
        assert len(set(windows)) == len(windows)
        if (lang, number + 1) in seen:  # the pass is over
            assert sorted(windows) == list(range(order.streams[lang].n_units))


@given(shapes, st.integers(0, 10**9))
@settings(max_examples=100)
def test_quota(shape: dict, step: int) -> None:
    order = make(**shape)
    counts, after = order.slots_before(step), order.slots_before(step + 1)
    assert sum(counts.values()) == step * order.slots
    for lang, count in counts.items():
        share = step * order.slots * order.streams[lang].share / sum(s.share for s in order.streams.values())
        # each floor leaves less than one slot more to the languages after it: two languages stay within one slot
        assert -1 < count - share < max(1, len(counts) - 1)
        assert after[lang] >= count
    drawn = Counter(slot.stream for slot in order.step(step))
    assert {lang: drawn[lang] for lang in counts} == {lang: after[lang] - counts[lang] for lang in counts}


def test_quota_by_hand() -> None:
    streams = [Stream("de", 10, 1, 8, Fraction(1, 4)), Stream("en", 10, 1, 4, Fraction(3, 4))]
    order = Order(streams, slots=3, seed=0)
    assert order.tokens_per_step == 15  # 3 x (8 / 4 + 3 x 4 / 4)
    # floor(3 t / 4) slots of de before step t: 0, 0, 1, 2, 3
    assert [order.slots_before(t)["de"] for t in range(5)] == [0, 0, 1, 2, 3]
    languages = [[slot.stream for slot in order.step(t)] for t in range(3)]
    assert languages == [["en"] * 3, ["de", "en", "en"], ["de", "en", "en"]]


@given(
    st.lists(st.integers(1, 2 * PIECE + 90), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from([1, 7, 300, PIECE, PIECE + 1]),
    st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_passes_drawn_in_pieces_are_the_passes_drawn_whole(
    windows: list[int], slots: int, slot_streams: int, first: int
) -> None:
    order = make(windows, slots, slot_streams, alpha=0.7, seed=5)
    for step in range(first, first + 3):
        had = order.slots_before(step)
        for slot in order.step(step):
            places = np.arange(had[slot.stream] * slot_streams, (had[slot.stream] + 1) * slot_streams)
            had[slot.stream] += 1
            n = order.streams[slot.stream].n_units
            assert np.array_equal(slot.passes, places // n)
            for number in set(slot.passes.tolist()):
                inside = slot.passes == number
                expected = permute(places[inside] % n, n, (5, slot.stream, number))
                assert np.array_equal(slot.units[inside], expected)


def test_shares() -> None:
    assert language_shares({"de": 900, "en": 100}, 0.0) == {"de": Fraction(1, 2), "en": Fraction(1, 2)}
    shares = language_shares({"de": 900, "en": 100}, 0.5)
    assert float(shares["de"]) == pytest.approx(0.75)
    assert sum(language_shares({"de": 900, "en": 100}, 1.0).values()) == 1


@pytest.mark.parametrize(("slots", "world_size"), [(8, 8), (8, 3), (256, 56), (5, 5), (7, 2)])
def test_ranks_share_all_slots(slots: int, world_size: int) -> None:
    ranges = [slots_of_rank(slots, rank, world_size) for rank in range(world_size)]
    assert [number for numbers in ranges for number in numbers] == list(range(slots))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert min(map(len, ranges)) >= 1


def test_a_share_costs_what_it_is() -> None:
    """Of a step of 10^12 slots, which nobody could list, those around the border of two streams."""
    streams = [Stream(name, 1000, 2, 64.0, Fraction(share)) for name, share in (("de", 1), ("en", 3))]
    order = Order(streams, slots=10**12, seed=0)
    border = 10**12 // 4
    found = order.step(0, range(border - 2, border + 1))
    assert [(slot.number, slot.stream) for slot in found] == [(border - 2, "de"), (border - 1, "de"), (border, "en")]
    small = Order(streams, slots=4000, seed=0).step(0)  # of which de has 1,000
    assert np.array_equal(found[2].units, small[1000].units)
    assert np.array_equal(found[1].passes, [(border - 1) * 2 // 1000] * 2)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="de: the training corpus has nothing to read"):
        Order([Stream("de", 0, 1, 1, Fraction(1))], 1, 0)
    with pytest.raises(ConfigError, match="slot_streams"):
        Order([Stream("de", 5, 0, 1, Fraction(1))], 1, 0)
    with pytest.raises(ConfigError, match="two streams have one name among de, de"):
        Order([Stream("de", 5, 1, 1, Fraction(1)), Stream("de", 5, 1, 1, Fraction(1))], 1, 0)


def test_the_order_is_that_of_earlier_versions() -> None:
    """All units of 300 steps and of two far ones, as the version before there were streams had them."""
    order, found = make([90, 70, 1033], slots=5, slot_streams=3, alpha=0.7, seed=11), hashlib.sha256()
    for step in [*range(300), 10**6, 10**9]:
        for s in order.step(step):
            found.update(f"{s.step} {s.number} {s.stream} {s.units.tolist()} {s.passes.tolist()}\n".encode())
    assert found.hexdigest() == "400d31ace37d4e39c31aac85c6ab0963aedeac7d267476066e95aa25e8238e8a"


# -- what the processes of a run really read -----------------------------------------------------------------------------


def _read(slot: SlotBatch) -> tuple[int, int, bytes]:
    return slot.number, slot.stream, slot.inputs.tokens_BT.numpy().tobytes()  # type: ignore[attr-defined]


class Reader:
    """All processes of a run over one corpus, in this one: the tokens of whole steps, in slot order."""

    def __init__(self, make_batch: Callable[..., Windows], order: Order, world_size: int) -> None:
        self.ranks = [
            StepBatches(order, make_batch, slots_of_rank(order.slots, rank, world_size)) for rank in range(world_size)
        ]

    def step(self, step: int) -> list[tuple[int, int, bytes]]:
        """(slot, language, tokens) of one step."""
        return [_read(s) for r in self.ranks for s in r.read(step).slots]

    def resumed(self, start: int, stop: int) -> Iterator[list[tuple[int, int, bytes]]]:
        """The same for steps start .. stop-1, iterated over as training does."""
        for rank in self.ranks:
            rank.start = start
        for batches in itertools.islice(zip(*self.ranks, strict=True), stop - start):
            assert len({batch.step for batch in batches}) == 1
            yield [_read(s) for batch in batches for s in batch.slots]


@pytest.fixture(scope="module")
def reader(golden_corpus: Path) -> Callable[..., Reader]:
    """reader(world_size, slots, ...) over the goldens' training text, opened again each time."""

    def make(world_size: int, slots: int, slot_streams: int = 4, bptt: int = 256, alpha: float = 0.7) -> Reader:
        text = TrainingText(Corpus(golden_corpus), bptt=bptt, slot_streams=slot_streams, lang_alpha=alpha)
        objective = CausalLM(text)
        order = Order(objective.streams, slots, seed=11)
        assert order.tokens_per_step == slots * slot_streams * bptt
        return Reader(objective.batch, order, world_size)

    return make


def boundaries(order: Order, steps: int) -> list[int]:
    """The steps among the first `steps` in which some language begins a pass."""
    streams = order.streams.values()
    passes = [
        {
            s.name: n * s.units_per_slot // s.n_units
            for s, n in zip(streams, order.slots_before(step).values(), strict=True)
        }
        for step in range(steps + 1)
    ]
    return [step for step in range(steps) if passes[step] != passes[step + 1]]


@pytest.mark.parametrize("slots", [8, 9, 15, 16, 56])
def test_any_number_of_processes_reads_the_same_real_tokens(slots: int, reader: Callable[..., Reader]) -> None:
    """Even shares of the slots and uneven ones; the steps around every start of a pass, and far into the run."""
    alone = reader(1, slots)
    order = alone.ranks[0].order
    steps = 2 * sum(stream.n_units for stream in order.streams.values()) // (slots * 4)
    chosen = sorted({0, 1, steps, 10**6, 10**9, *(s + d for s in boundaries(order, steps) for d in (0, 1))})
    assert boundaries(order, steps)
    for step in chosen:
        wanted = alone.step(step)
        assert [number for number, _, _ in wanted] == list(range(slots))
        for world_size in WORLDS[1:]:
            assert reader(world_size, slots).step(step) == wanted, (step, world_size)


@pytest.mark.parametrize("world_size", WORLDS)
def test_a_pass_over_real_text_is_the_text(world_size: int, golden_corpus: Path, reader: Callable[..., Reader]) -> None:
    """Two passes of each language: every window of the text once in each, whichever processes read them."""
    together, bptt = reader(world_size, slots=9, slot_streams=16), 256
    order = together.ranks[0].order
    read: dict[int, list[bytes]] = {0: [], 1: []}
    lengths = [order.streams[lang].n_units for lang in ("de", "en")]
    step = 0
    while any(len(read[language]) < 2 * lengths[language] for language in read):
        for _, language, tokens in together.step(step):
            width = len(tokens) // 16
            read[language] += [tokens[at : at + width] for at in range(0, len(tokens), width)]
        step += 1
    for language, code in enumerate(("de", "en")):
        files = sorted(golden_corpus.glob(f"train.{code}.?????.npy"))
        text = np.concatenate([np.load(path) for path in files]).astype(np.int64)[:-1]  # its last token is never read
        padded = np.concatenate([np.ones(lengths[language] * bptt - len(text), dtype=np.int64), text])
        windows = Counter(row.tobytes() for row in padded.reshape(-1, bptt))
        passes = [read[language][n * lengths[language] : (n + 1) * lengths[language]] for n in (0, 1)]
        assert [Counter(windows_read) == windows for windows_read in passes] == [True, True]
        assert passes[0] != passes[1]  # in another order


RESUME_POINTS = 600


def test_600_resume_points_over_real_text(reader: Callable[..., Reader]) -> None:
    """A run of 120 steps, begun again at every one of them on each world size: what follows is what was read undisturbed."""
    steps, slots = 120, 9
    recorder = reader(1, slots, bptt=512)
    undisturbed = [recorder.step(step) for step in range(steps)]
    starts = boundaries(recorder.ranks[0].order, steps)
    assert len(starts) >= 2
    checked = 0
    for world_size in WORLDS:
        resumed = reader(world_size, slots, bptt=512)
        for start in range(steps):
            # to the end of the run at some points, the start of a pass among them; a few steps at all others
            whole = start % 40 == 0 or start in starts or start - 1 in starts
            stop = steps if whole else min(start + 3, steps)
            assert list(resumed.resumed(start, stop)) == undisturbed[start:stop], (start, world_size)
            checked += 1
    assert checked == RESUME_POINTS


def numbered(slot: Slot, generator: np.random.Generator) -> Windows:
    """Windows of one token, of a text of any length, none of it held: the token is the window's number."""
    return Windows(torch.from_numpy(slot.units[:, None]), 0)


vast_shapes = st.fixed_dictionaries(
    {
        "windows": st.lists(st.integers(1, 40) | st.integers(1, 2**36), min_size=1, max_size=4),
        "slots": st.integers(1, 40),
        "slot_streams": st.integers(1, 17),
        "alpha": st.floats(0.0, 1.0),
        "seed": st.integers(0, 2**63 - 1),
    }
)


@given(vast_shapes, st.integers(0, 3 * 10**9), st.sampled_from(WORLDS), st.sampled_from(WORLDS))
@settings(max_examples=100)
def test_any_shape_resumes_at_any_step_on_any_number_of_processes(
    shape: dict, step: int, world_size: int, resumed_on: int
) -> None:
    """Steps t, t+1, t+2 read by a run that never stopped, and by one begun at t+1 knowing nothing else."""
    order = make(**shape)
    world_size, resumed_on = min(world_size, order.slots), min(resumed_on, order.slots)
    before = list(Reader(numbered, order, world_size).resumed(step, step + 3))
    again = list(Reader(numbered, make(**shape), resumed_on).resumed(step + 1, step + 3))
    assert again == before[1:]
    assert [number for number, _, _ in before[0]] == list(range(order.slots))


@given(st.integers(2**33, 2**40), st.integers(0, 2**63 - 1), st.integers(0, 1000), st.data())
@settings(max_examples=40)
def test_a_vast_pass_repeats_no_window(n: int, seed: int, number: int, data: st.DataObject) -> None:
    """Of a pass too long to walk through: 20,000 places in a row, anywhere in it, read 20,000 windows of the text."""
    start = data.draw(st.integers(0, n - 20_000))
    windows = permute(np.arange(start, start + 20_000), n, (seed, "de", number))
    assert len(np.unique(windows)) == 20_000
    assert windows.min() >= 0
    assert windows.max() < n
    assert abs(windows.mean() / n - 0.5) < 0.0125  # 6 standard deviations of a uniform draw


@given(st.integers(2**33, 2**36), st.integers(1, 12), st.integers(1, 16), st.integers(1, 5))
@settings(max_examples=60)
def test_a_vast_pass_begins_where_the_one_before_ends(n: int, slots: int, slot_streams: int, passes: int) -> None:
    """The step in which pass `passes` begins, found in closed form: places before it belong to the pass before."""
    order = make([n], slots, slot_streams, 0.0, seed=3)
    step = passes * n // (slots * slot_streams)
    places = np.arange(step * slots * slot_streams, (step + 1) * slots * slot_streams)
    read_passes = np.concatenate([slot.passes for slot in order.step(step)])
    assert (read_passes == np.where(places < passes * n, passes - 1, passes)).all()
    assert passes in read_passes


@given(
    st.lists(st.integers(1, 10**12), min_size=2, max_size=2),
    st.integers(1, 4096),
    st.floats(0, 1),
    st.integers(0, 10**9),
)
@settings(max_examples=150)
def test_two_languages_stay_within_a_slot_of_their_shares(
    sentences: list[int], slots: int, alpha: float, step: int
) -> None:
    """Of the shares as they are meant, p^alpha in floating point: what exact fractions round is not lost over a run."""
    order = make(sentences, slots, 1, alpha, seed=0)
    powers = [count**alpha for count in sentences]
    for lang, power in zip(order.streams, powers, strict=True):
        meant = power / sum(powers) * step * slots
        rounding = step * slots * 2.0**-39  # of a share: shown below to matter only beyond 10^11 slots
        assert abs(order.slots_before(step)[lang] - meant) <= 1 + rounding
