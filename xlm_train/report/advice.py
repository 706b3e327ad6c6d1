"""What a run should be warned of: a batch or a rate far from the original's recipe, settings that do nothing here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xlm_train.config.parts import parts_of, translates
from xlm_train.data.order import Order, Stream
from xlm_train.report.recipe import LEARNING_RATES, ORIGINAL, TOKENS_PER_UPDATE
from xlm_train.report.translating import TOKENS_OF_TRANSLATION

FAR = 4  # times as little or as much as the recipe's: worth a warning


def doubts(config: dict[str, Any], order: Order, steps: int) -> list[str]:
    """All of it.

    Args:
        config: The run's config.
        order: What it reads.
        steps: At which it ends.
    """
    return advice(config, order.tokens_per_step) + without_effect(config, order.streams.values(), steps)


def advice(config: dict[str, Any], tokens_per_step: int) -> list[str]:
    """Warn where the batch or the learning rate of a run is far from the recipe's.

    Args:
        config: The run's config.
        tokens_per_step: Tokens that a step reads, over all processes.

    Returns:
        Warnings with their reasons; none for other models than the published one, which have no recipe here.
    """
    if any(config["model"][key] != ORIGINAL[f"model.{key}"] for key in ("dim", "n_layers", "n_heads")):
        return []
    found, recipe = [], TOKENS_PER_UPDATE
    if translates(config["objective"]):
        recipe = TOKENS_OF_TRANSLATION
    rate = config["optimizer"].get("lr")
    if tokens_per_step * FAR <= recipe:
        slots = recipe * config["data"]["slots"] // tokens_per_step
        found.append(
            f"a step has {tokens_per_step:,} tokens, the recipe's {recipe:,}: its gradient is noisier by about"
            f" {(recipe / tokens_per_step) ** 0.5:.1f} times than those its learning rate was chosen for;"
            f" data.slots={slots} gives the recipe's batch on any number of devices, by accumulation"
        )
    low, high = LEARNING_RATES
    if isinstance(rate, int | float) and not low / FAR <= rate <= high * FAR:
        found.append(
            f"optimizer.lr={rate:g} is far from the recipe's peaks, {low:g} to {high:g} at {recipe:,} tokens a step:"
            f" {'slow to learn' if rate < low else 'likely to diverge after the warm-up'}"
        )
    return found


def without_effect(config: dict[str, Any], streams: Iterable[Stream], steps: int) -> list[str]:
    """Warn of settings that do nothing in this run, or not what they say.

    Args:
        config: The run's config.
        streams: What its objective reads.
        steps: At which it ends.
    """
    found = []
    alpha, total = config["data"]["lang_alpha"], config["schedule"].get("total_updates")
    reads = {getattr(kind, "reads", "windows") for kind, _ in parts_of(config["objective"]).values()}
    if alpha and ("windows" not in reads or any(stream.turn is not None for stream in streams)):
        found.append(f"data.lang_alpha={alpha} has no effect: this objective takes all its texts equally often")
    if isinstance(total, int) and total > steps:
        found.append(
            f"schedule.total_updates={total:,}, but the run ends at step {steps:,} (trainer.max_tokens): its rate is"
            f" still high there; schedule.total_updates={steps} ends with the run"
        )
    return found
