"""What is known of an exported model: from its checkpoint, its corpus, its run folder and its evaluations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from xlm_train.config.schema import at_least
from xlm_train.runtime.console import log
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import read_json


@dataclass(frozen=True)
class CardFields:
    """What no file can know and the user may say."""

    name: str | None = None
    license: str | None = None
    authors: str | None = None
    contact: str | None = None
    region: str | None = None
    watts: Annotated[float | None, at_least(0)] = None
    grams_co2_per_kwh: Annotated[float | None, at_least(0)] = None


@dataclass
class Facts:
    """All that the card tells, as far as it is known.

    Attributes:
        content: Of the checkpoint.
        fields: What the user says.
        checkpoint_sha256: Of the checkpoint's file.
        n_parameters: Of the exported model: tied weights once, no padding rows.
        manifest: Of the corpus the model was trained on.
        environment: environment.json of the run folder.
        metrics: Lines of metrics.jsonl of the run folder, up to the checkpoint's step.
        energy: energy.json of the run folder, or an estimate.
        evaluations: Results of xlm-eval.
        stock: Language -> on how many lines transformers' encode() was tried, and for how many it differs.
        warnings: What transformers cannot treat as this program does.
        pipeline_language: The user's choice for pipelines of transformers; None takes English, else the first.
    """

    content: Mapping[str, Any]
    fields: CardFields = field(default_factory=CardFields)
    checkpoint_sha256: str = ""
    n_parameters: int = 0
    manifest: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    energy: Mapping[str, Any] | None = None
    evaluations: Sequence[Mapping[str, Any]] = ()
    stock: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    pipeline_language: str | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config of the run, or of an import."""
        config: Mapping[str, Any] = self.content["config"]
        return config

    @property
    def languages(self) -> dict[str, int]:
        """Language -> id."""
        return dict(self.content["text"]["languages"])

    @property
    def name(self) -> str:
        """The model's name: the user's, else the run's."""
        kind = "mlm" if self.content.get("evaluation") == "masked" else "clm"
        return self.fields.name or self.config.get("run_name") or f"xlm-{kind}-{''.join(self.languages)}"

    @property
    def hours(self) -> float | None:
        """Hours in training steps, of all starts of the run together."""
        lines = [line for line in self.metrics if "speed/seconds_per_step" in line]
        pairs = itertools.pairwise([{"step": 0}, *lines])
        seconds = [line["speed/seconds_per_step"] * (line["step"] - last["step"]) for last, line in pairs]
        return sum(seconds) / 3600 if lines else None


def _energy(facts: Facts, recorded: dict[str, Any] | None) -> dict[str, Any] | None:
    """The run's energy: what was measured, else by the user's figures, else as the run estimated it.

    `electricity` says whose the CO2 figure is for: the user's own, or the average that the run was counted with.
    """
    found, grams = recorded, facts.fields.grams_co2_per_kwh
    if found is None or not str(found.get("method", "")).startswith("measured"):
        found = _estimated_energy(facts) or found
    if found is None:
        return None
    if grams is not None and found.get("energy_kwh") is not None:
        stated = {"co2_kg": found["energy_kwh"] * grams / 1000, "region": facts.fields.region}
        return {**found, **stated, "electricity": f"{grams:g} g CO2 per kWh as stated by the author"}
    if found.get("co2_kg") is not None and found.get("region"):
        return {**found, "electricity": f"average of {found['region']}"}
    return found


def _estimated_energy(facts: Facts) -> dict[str, Any] | None:
    """Energy from the hours of training and the power the user states; None where either is unknown."""
    if facts.hours is None or facts.fields.watts is None:
        return None
    method = f"estimated, not measured: {facts.hours:.3g} hours x {facts.fields.watts:g} W as stated by the author"
    return {"energy_kwh": facts.hours * facts.fields.watts / 1000, "method": method}


def gather(
    checkpoint: Path, content: Mapping[str, Any], evaluation: Path | None, fields: CardFields, n_parameters: int
) -> Facts:
    """Gather facts from a checkpoint and what lies around it: its corpus, its run folder, results of xlm-eval.

    A corpus that is not the one the model was trained on (another lineage) is not used.

    Args:
        checkpoint: The file.
        content: What is in it.
        evaluation: A result of xlm-eval; None takes those beside the checkpoint.
        fields: What the user says.
        n_parameters: Of the exported model.

    Returns:
        The facts.

    Raises:
        UserError: If `evaluation` is not a result of xlm-eval for this checkpoint.
    """
    facts = Facts(content, fields, content["sha256"], n_parameters)
    run = checkpoint.resolve().parent.parent
    path = (facts.config.get("data") or {}).get("path")
    for file in (run / "corpus.json", *([Path(path) / "manifest.json"] if path else [])):
        manifest = _json_if_there(file)
        if manifest is not None and manifest.get("lineage") == content["lineage"].get("corpus"):
            facts.manifest = manifest
    if (run / "config.yaml").is_file():
        from xlm_train.training.loggers import read_metrics  # with Lightning, which the card's fields do without

        facts.environment = _json_if_there(run / "environment.json")
        step = content["progress"]["step"]
        facts.metrics = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] <= step]
        facts.energy = _energy(facts, _json_if_there(run / "energy.json"))
    facts.evaluations = _evaluations(evaluation, checkpoint, content)
    return facts


def _evaluations(given: Path | None, checkpoint: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The given result of xlm-eval, else those beside the checkpoint that are of this checkpoint and its own corpus."""
    beside = sorted(checkpoint.resolve().parent.glob("*.json"))
    results = [read_json(given)] if given else [_json_if_whole(file) for file in beside]
    own = [
        result
        for result in results
        if isinstance(result, dict)
        and "languages" in result
        and result.get("checkpoint", {}).get("sha256") == content["sha256"]
    ]
    if given and not own:
        raise UserError(f"evaluation={given}: is not a result of xlm-eval for this checkpoint")
    trained_on = content["lineage"].get("corpus")
    return own if given else [r for r in own if r.get("corpus", {}).get("lineage", trained_on) == trained_on]


def _json_if_whole(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError as error:  # whatever lies there
        log(f"warning: {error}: not looked at")
        return None


def _json_if_there(path: Path) -> dict[str, Any] | None:
    value = read_json(path) if path.is_file() else None
    return value if isinstance(value, dict) else None
