"""Settings that do nothing in a run: its first lines tell."""

from __future__ import annotations

from fractions import Fraction

from xlm_train.config.overrides import compose
from xlm_train.config.train import resolved_config
from xlm_train.data.order import Order, Stream
from xlm_train.report.advice import doubts


def told(*words: str, steps: int = 100, turn: str | None = None) -> list[str]:
    config = resolved_config(compose("train", ["experiment=demo", "data.path=x", *words], None))
    streams = [Stream(name, 10, 1, 512, Fraction(1), turn=turn) for name in ("de", "en")]
    return doubts(config, Order(streams, slots=2, seed=0), steps)


def test_shares_of_languages_where_none_are_read() -> None:
    assert told("data.lang_alpha=0.7", "trainer.max_steps=100") == []
    for objective, turn in (("umt", "ae"), ("tlm", None)):
        (line,) = told("data.lang_alpha=0.7", "trainer.max_steps=100", f"objective={objective}", turn=turn)
        assert line.startswith("data.lang_alpha=0.7 has no effect")
        assert told("trainer.max_steps=100", f"objective={objective}", turn=turn) == []


def test_a_schedule_that_a_limit_of_tokens_cuts_short() -> None:
    (line,) = told("trainer.max_steps=1800", steps=98)
    assert "schedule.total_updates=1,800, but the run ends at step 98" in line
    assert told("trainer.max_steps=98", steps=98) == []
