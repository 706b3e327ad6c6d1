"""Where a run should be warned that its batch or its learning rate is far from the original's recipe."""

from __future__ import annotations

from typing import Any

from xlm_train.config.parts import translates
from xlm_train.report.recipe import LEARNING_RATES, ORIGINAL, TOKENS_PER_UPDATE
from xlm_train.report.translating import TOKENS_OF_TRANSLATION

FAR = 4  # times as little or as much as the recipe's: worth a warning


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
