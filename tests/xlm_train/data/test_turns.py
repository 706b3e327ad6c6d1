"""Streams in turns: the stream and the weight of any step, in closed form, are those of a loop that counts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlm_train.data.order import Order, Slot, Stream, slots_of_rank
from xlm_train.data.turns import Turns, Weight
from xlm_train.runtime.errors import ConfigError

PAPER = "0:1,100000:0.1,300000:0"  # the original's lambda_ae


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1, {0: 1.0, 10**9: 1.0}),
        ("0.5", {0: 0.5, 7: 0.5}),
        (0, {0: 0.0}),
        (PAPER, {0: 1.0, 50_000: 0.55, 100_000: 0.1, 200_000: 0.05, 299_999: 5e-7, 300_000: 0.0, 10**9: 0.0}),
        ("0:0,10:2", {0: 0.0, 5: 1.0, 10: 2.0, 11: 2.0}),
        ("0:3", {0: 3.0, 9: 3.0}),
        (" 0:1, 4:0", {3: 0.25}),
    ],
)
def test_a_weight_is_linear_between_its_points(text: float | str, expected: dict[int, float]) -> None:
    weight = Weight.parse(text)
    assert {at: weight.at(at) for at in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["", "1,2", None, True, "x", "-1", "nan", "inf", "0:1,", "1:1", "5:1,0:2", "0:1,10:0,10:1", "0:1,10:-1", "0:1,1.5:0", "0:1:2", "0:nan"],
)  # fmt: skip
def test_a_text_that_is_no_weight_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a weight is a number from 0, or points iteration:weight"):
        Weight.parse(text)


def loop(groups: dict[str, dict[str, Weight]], turns: Turns) -> Iterator[tuple[int, str, float]]:
    """(iteration, stream, weight) of each step, as the original's loop takes them: group by group, those of weight 0 none.

    Only the order within a group is asked of `turns`, as the draw is its own.
    """
    step = 0
    for iteration in itertools.count():
        for streams in groups.values():
            active = {name for name, weight in streams.items() if weight.at(iteration) > 0}
            for _ in range(len(active)):
                name, _ = turns.at(step)
                assert name in active
                active.remove(name)  # each once
                yield iteration, name, streams[name].at(iteration)
                step += 1


points = st.dictionaries(st.integers(1, 12), st.sampled_from([0.0, 0.0, 0.5, 1.0]), max_size=4)
weights = st.builds(
    lambda first, later: Weight(((0, first), *sorted(later.items()))), st.sampled_from([0.0, 1.0]), points
)
made_groups = st.lists(st.lists(weights, min_size=1, max_size=3), min_size=1, max_size=3).map(
    lambda groups: {
        f"g{number}": {f"g{number}s{place}": weight for place, weight in enumerate(group)}
        for number, group in enumerate(groups)
    }
)


@given(made_groups, st.integers(0, 2**31))
@settings(max_examples=50)
def test_any_step_is_that_of_the_loop(groups: dict[str, dict[str, Weight]], seed: int) -> None:
    """Weights that are 0 at single points, over stretches and at the beginning; steps asked for in order and at random."""
    if all(weight.points[-1][1] == 0 for group in groups.values() for weight in group.values()):
        with pytest.raises(ConfigError, match="weights: all are 0 from iteration"):
            Turns(groups, seed)
        return
    turns, other = Turns(groups, seed), Turns(groups, seed)
    counts = dict.fromkeys(turns.weights, 0)
    taken = []
    for step, (_, name, weight) in enumerate(itertools.islice(loop(groups, turns), 120)):
        assert turns.at(step) == (name, weight)
        assert turns.before(step) == counts
        counts[name] += 1
        taken.append((name, weight))
    for step in (119, 3, 60, 59, 0):
        assert other.at(step) == taken[step]


def test_the_order_within_a_group_is_drawn_for_each_iteration() -> None:
    groups = {"ae": dict.fromkeys(("a", "b"), Weight()), "bt": dict.fromkeys(("c", "d"), Weight())}
    turns = Turns(groups, seed=0)
    orders = Counter(tuple(turns.at(4 * number + place)[0] for place in range(4)) for number in range(400))
    assert {frozenset(order[:2]) for order in orders} == {frozenset("ab")}
    assert len(orders) == 4
    assert all(70 <= count <= 130 for count in orders.values())  # 100 +- 3.5 standard deviations
    other = Turns(groups, seed=1)
    assert [turns.at(step) for step in range(40)] != [other.at(step) for step in range(40)]


def test_a_step_of_a_long_run_is_found_without_those_before_it() -> None:
    """The original's run to 10^9 steps: 300,000 iterations of 4 steps, then 2 an iteration. One by one they would take an hour."""
    groups = {"ae": dict.fromkeys(("ae-de", "ae-en"), Weight.parse(PAPER)), "bt": dict.fromkeys(("x", "y"), Weight())}
    turns = Turns(groups, seed=0)
    before = turns.before(10**9)
    rest = (10**9 - 4 * 300_000) // 2
    assert before == {"ae-de": 300_000, "ae-en": 300_000, "x": 300_000 + rest, "y": 300_000 + rest}
    assert {turns.at(step)[0] for step in (10**9, 10**9 + 1)} == {"x", "y"}
    last = [turns.at(step) for step in range(4 * 299_999, 4 * 300_000)]
    assert sorted(last) == [("ae-de", pytest.approx(5e-7)), ("ae-en", pytest.approx(5e-7)), ("x", 1.0), ("y", 1.0)]


# -- the order of a run --------------------------------------------------------------------------------------------------


def order_of(slots: int, seed: int = 3, **units: int) -> Order:
    ae = Weight.parse("0:1,6:0")
    streams = [
        Stream(name, n, 1, 100.0, Fraction(1), weight=ae if name[:2] == "ae" else Weight(), turn=name[:2])
        for name, n in units.items()
    ]
    return Order(streams, slots, seed)


def read_by(slot: Slot) -> tuple[str, int, list[int]]:
    return slot.stream, slot.number, slot.units.tolist()


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_all_slots_of_a_step_are_of_one_stream_which_is_read_once_a_pass(slots: int) -> None:
    units = {"ae_de": 7, "ae_en": 5, "bt_de": 7, "bt_en": 20}
    order = order_of(slots, **units)
    counts, read = dict.fromkeys(units, 0), {name: [] for name in units}  # type: ignore[var-annotated]
    for step in range(200):
        assert order.slots_before(step) == counts
        found = order.step(step)
        names = {slot.stream for slot in found}
        assert len(found) == slots
        assert len(names) == 1
        assert [slot.number for slot in found] == list(range(slots))
        iteration = step // 4 if step < 24 else 6 + (step - 24) // 2
        expected = max(0.0, 1 - iteration / 6) if found[0].stream[:2] == "ae" else 1.0
        assert [slot.weight for slot in found] == pytest.approx([expected] * slots)
        assert expected > 0
        if step < 30:
            shared = [slot for rank in range(slots) for slot in order.step(step, slots_of_rank(slots, rank, slots))]
            assert [read_by(slot) for slot in shared] == [read_by(slot) for slot in found]
        counts[names.pop()] += slots
        for slot in found:
            read[slot.stream] += zip(slot.passes.tolist(), slot.units.tolist(), strict=True)
    for name, seen in read.items():
        whole = len(seen) // units[name]
        assert seen[0][0] == 0
        for number in range(whole):
            assert sorted(unit for p, unit in seen if p == number) == list(range(units[name]))


def test_mixed_orders_and_no_stream_are_refused() -> None:
    streams = [Stream("a", 5, 1, 10.0, Fraction(1)), Stream("b", 5, 1, 10.0, Fraction(1), turn="x")]
    with pytest.raises(ConfigError, match="some of its streams take turns and others do not"):
        Order(streams, 1, 0)
    with pytest.raises(ConfigError, match="objective: it reads nothing"):
        Order([], 1, 0)


def test_by_quota_a_weight_counts_steps() -> None:
    order = Order([Stream("a", 5, 1, 10.0, Fraction(1), weight=Weight.parse("0:1,10:3"))], 2, 0)
    assert [[slot.weight for slot in order.step(step)] for step in (0, 5, 10, 99)] == [[1, 1], [2, 2], [3, 3], [3, 3]]
