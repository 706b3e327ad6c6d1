"""Our objectives in the original's options (clm_steps, mlm_steps, word_pred, ...), and how its files' models are scored."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from xlm_train.data.manifest import languages_of
from xlm_train.model.seq2seq import SIDES


def steps_of(config: Mapping[str, Any], languages: Sequence[str], evaluation: str) -> dict[str, Any]:
    """Say what a run has learned as the original's options do.

    Args:
        config: The resolved config of our run, or of an import.
        languages: Of the model.
        evaluation: Of the checkpoint: "masked" models have mlm_steps, "causal" ones clm_steps, others neither.

    Returns:
        The options that differ from those of a run without any objective. `pairs: null` names all pairs of the languages:
        which of them the corpus had, a checkpoint does not say.
    """
    objective, data = config.get("objective") or {}, config.get("data") or {}
    every = [(code, None) for code in languages]
    if evaluation == "causal":
        return {"clm_steps": every, "validation_metrics": "_valid_clm_ppl"}
    if evaluation != "masked":
        return {}
    parts = [part for part in (objective, *(objective.get("parts") or {}).values()) if "mask_share" in part]
    single = every if not parts or any("pairs" not in part for part in parts) else []
    pairs = [pair for part in parts if "pairs" in part for pair in _pairs(part["pairs"], languages)]
    found: dict[str, Any] = {"mlm_steps": single + pairs}
    found["validation_metrics"] = f"_{metric_of(found)}"
    if parts:
        mask, keep, random = shares = [float(share) for share in parts[0]["replacements"]]
        found |= {
            "word_pred": float(parts[0]["mask_share"]), "sample_alpha": parts[0]["sample_alpha"],
            "word_mask_keep_rand": ",".join(map(str, shares)), "word_mask": mask, "word_keep": keep, "word_rand": random,
        }  # fmt: skip
    if pairs and "tokens_per_slot" in data:
        found |= {
            "max_len": data["max_len"],
            "tokens_per_batch": int(data["tokens_per_slot"] * data.get("slots", 1)),
            "para_dataset": {tuple(sorted(pair)): {} for pair in pairs},
        }
    return found


def metric_of(options: Mapping[str, Any]) -> str:
    """Name the mean perplexity of validation as the original does: over the languages, or of the first pair alone."""
    steps = options.get("mlm_steps")
    if not steps:
        return "valid_clm_ppl"
    first, second = min(steps, key=lambda step: step[1] is not None)
    return "valid_mlm_ppl" if second is None else f"valid_{first}_{second}_mlm_ppl"


def evaluation_of(params: Mapping[str, Any], sides: Sequence[str]) -> str:
    """Tell how a file's model is scored: a language model of both objectives as a causal one."""
    if tuple(sides) == SIDES:
        return "translation"
    return "masked" if params.get("mlm_steps") and not params.get("clm_steps") else "causal"


def _pairs(names: Sequence[str] | None, languages: Sequence[str]) -> list[tuple[str, str]]:
    if names is None:
        return list(itertools.combinations(sorted(languages), 2))
    return [pair for name in names if (pair := languages_of(name)) is not None]
