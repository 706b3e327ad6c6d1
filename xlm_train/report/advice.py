"""Where a run of the published model is far from the recipe it was published with."""

from __future__ import annotations

from typing import Any

from xlm_train.report.recipe import LEARNING_RATES, ORIGINAL, TOKENS_PER_UPDATE

FAR = 4  # times


def advice(config: dict[str, Any], tokens_per_step: int) -> list[str]:
    """Warnings about batch and learning rate, with the reason; none for other models, which have no recipe here."""
    if any(config["model"][key] != ORIGINAL[f"model.{key}"] for key in ("dim", "n_layers", "n_heads")):
        return []
    found = []
    data, rate = config["data"], config["optimizer"].get("lr")
    if tokens_per_step * FAR <= TOKENS_PER_UPDATE:
        slots = TOKENS_PER_UPDATE // (data["slot_streams"] * data["bptt"])
        found.append(
            f"a step has {tokens_per_step:,} tokens, the recipe's {TOKENS_PER_UPDATE:,}: its gradient is noisier by about"
            f" {(TOKENS_PER_UPDATE / tokens_per_step) ** 0.5:.1f} times than those its learning rate was chosen for;"
            f" data.slots={slots} gives the recipe's batch on any number of devices, by accumulation"
        )
    low, high = LEARNING_RATES
    if isinstance(rate, int | float) and not low / FAR <= rate <= high * FAR:
        found.append(
            f"optimizer.lr={rate:g} is far from the recipe's peaks, {low:g} to {high:g} at {TOKENS_PER_UPDATE:,} tokens a step:"
            f" {'slow to learn' if rate < low else 'likely to diverge after the warm-up'}"
        )
    return found
