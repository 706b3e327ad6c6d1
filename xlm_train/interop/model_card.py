"""The model card of an export: README.md in the hub's format, filled in from facts and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xlm_train.config.train import window_tokens
from xlm_train.data.manifest import entries
from xlm_train.interop.card_kinds import example_of, kind_of
from xlm_train.interop.facts import Facts
from xlm_train.model.transformer import ModelShape
from xlm_train.runtime.run_folder import flatten
from xlm_train.text.vocabulary import SPECIALS

UNKNOWN = "not recorded"
MEASURES = {
    "perplexity": "perplexity per token",
    "accuracy": "accuracy (%)",
    "perplexity_per_word": "perplexity per word before BPE",
    "bits_per_character": "bits per character",
}
SETTINGS = ("objective", "data", "model", "optimizer", "schedule", "trainer", "seed")
PARAMS = (  # of an imported checkpoint
    "optimizer", "bptt", "batch_size", "epoch_size", "clip_grad_norm", "fp16", "dropout", "attention_dropout",
)  # fmt: skip
NOT_SETTINGS = ("data.path", "optimizer._partial_", "schedule._partial_", "objective._partial_")
LANGUAGE_NAMES = {"de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch"}


def model_card(facts: Facts) -> str:
    """Write the card.

    Args:
        facts: What is known; the rest is said to be not recorded.

    Returns:
        Markdown with the hub's metadata on top.
    """
    head = OmegaConf.to_yaml(OmegaConf.create(metadata(facts)))
    fields, names, kind = facts.fields, _language_names(facts), kind_of(facts)
    shape = ModelShape(**facts.content["shape"])
    language = "en" if "en" in facts.languages else next(iter(facts.languages))
    other = next((code for code in facts.languages if code != language), language)
    stock = "\n".join(f"- {code}: {_share(facts.stock.get(code))}" for code in facts.languages)
    warnings = "".join(f"\n- {warning}" for warning in facts.warnings)
    positions = "sinusoidal" if shape.sinusoidal_positions else "learned"
    hours = UNKNOWN
    if facts.hours is not None:
        hours = f"{facts.hours:,.3g} (training steps; validation and saving not counted)"
    return f"""---
{head}---

# {facts.name}

## Model details

{kind.intro} for {names}: one Transformer that reads text of
each language with an embedding of that language added at every position (Lample & Conneau 2019). It is of the same
kind as `{kind.like}`.

- **Developed by:** {fields.authors or UNKNOWN}
- **Model type:** {kind.name}, {facts.n_parameters:,} parameters
- **Languages:** {names}
- **License:** {fields.license or UNKNOWN}
- **Origin:** {_origin(facts)}
- **Paper:** Cross-lingual Language Model Pretraining, https://arxiv.org/abs/1901.07291

## How to get started

{kind.example}

{stock}

The training's own ids, from the files in this folder, each line ended by `</s>`:

```python
from xlm_train.interop.transformers.folder import open_text

ids = open_text("FOLDER").encode(["{example_of(other)}"], "{other}").ids{kind.ends}
input_ids = torch.tensor([[tokenizer.sep_token_id, *ids.tolist()]])  # </s> first
```

Text that is tokenised already comes out the same through
`tokenizer.convert_tokens_to_ids(tokenizer._tokenize(text, bypass_tokenizer=True))`.

{kind.trap}{warnings}

## Uses

{kind.uses} in {names}, and as the starting point of further training: translation
models, as in the paper, or classifiers. It follows no instructions and is no translator as it is.

## Bias, risks and limitations

The model repeats what its training text says, errors and prejudices included, and nothing has been done to remove them.
What it writes is not to be taken for fact. It was not tested for bias.{_window(facts)}

## Training details

### Training data

{_data(facts)}

### Preprocessing

{_preprocessing(facts)}

### Hyperparameters

{_hyperparameters(facts)}

## Evaluation

{_evaluation(facts)}

## Environmental impact

- **Hardware type:** {_hardware(facts)}
- **Hours used:** {hours}
- **Region:** {_region(facts)}
- **Energy:** {_measured(facts, "energy_kwh", "kWh")}
- **Carbon dioxide emitted:** {_measured(facts, "co2_kg", "kg")}

## Technical specifications

- **Architecture:** Transformer, {shape.n_layers} layers, width {shape.dim}, {shape.n_heads} heads, feed-forward width
  {shape.ffn_dim}, GELU, LayerNorm after each sum; {shape.max_positions} {positions} positions; language embeddings:
  {shape.n_langs if shape.uses_languages else "none"}; input and output embeddings tied; dropout {shape.dropout}
- **Objective:** {kind.objective}

- **Software:** {_software(facts)}
- **Checkpoint:** sha256 `{facts.checkpoint_sha256}`

## Citation

```bibtex
@inproceedings{{lample2019cross,
  title = {{Cross-lingual Language Model Pretraining}},
  author = {{Lample, Guillaume and Conneau, Alexis}},
  booktitle = {{Advances in Neural Information Processing Systems}},
  year = {{2019}}
}}
```

Lample, G., & Conneau, A. (2019). Cross-lingual language model pretraining. *Advances in Neural Information Processing
Systems*, 32.

**Contact:** {fields.contact or UNKNOWN}
"""


def metadata(facts: Facts) -> dict[str, Any]:
    """Collect what the hub reads from the card's head."""
    kind = kind_of(facts)
    found: dict[str, Any] = {
        "language": list(facts.languages),
        "library_name": "transformers",
        "tags": ["xlm", kind.tag, "cross-lingual"],
    }
    if kind.pipeline:
        found["pipeline_tag"] = kind.pipeline
    if facts.fields.license:
        found["license"] = facts.fields.license
    if facts.energy and facts.energy.get("co2_kg") is not None:
        found["co2_eq_emissions"] = {
            "emissions": 1000 * facts.energy["co2_kg"],
            "source": facts.energy.get("method", UNKNOWN),
            "training_type": "pre-training",
            "geographical_location": facts.energy.get("region") or facts.fields.region or UNKNOWN,
            "hardware_used": _hardware(facts),
        }
    results = [
        {
            "task": {"type": kind.task, "name": kind.task_name},
            "dataset": {"type": "text", "name": f"{language}, {_text_name(result)}"},
            "metrics": [
                {"type": measure, "name": title, "value": round(float(figures[measure]), 6)}
                for measure, title in MEASURES.items()
                if figures.get(measure) is not None
            ],
        }
        for result in facts.evaluations
        for language, figures in result["languages"].items()
    ]
    if results:
        found["model-index"] = [{"name": facts.name, "results": results}]
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: Any, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def _language_names(facts: Facts) -> str:
    return " and ".join(
        f"{LANGUAGE_NAMES[code]} ({code})" if code in LANGUAGE_NAMES else code for code in facts.languages
    )


def _origin(facts: Facts) -> str:
    if imported := facts.config.get("imported"):
        return f"imported from `{imported['file']}`, not trained by this project"
    return "continued from another checkpoint" if facts.content["lineage"].get("parents") else "trained from scratch"


def _share(counts: Mapping[str, int] | None) -> str:
    if not counts or not counts["lines"]:
        return "not measured"
    return f"{counts['differ']:,} of {counts['lines']:,} lines ({100 * counts['differ'] / counts['lines']:.1f} %)"


def _window(facts: Facts) -> str:
    bptt = (facts.config.get("data") or {}).get("bptt")
    return f" Windows of {bptt} tokens were seen in training: later positions are untrained." if bptt else ""


def _data(facts: Facts) -> str:
    lineage = facts.content["lineage"].get("corpus") or UNKNOWN
    if facts.manifest is None:
        return f"Text, sizes and hashes: {UNKNOWN}. Lineage of the corpus: `{lineage}`."
    counted = _table(
        ["split", "language", "sentences", "words", "tokens", "unknown tokens"],
        [
            [*name.split(".", 1), *(_number(entry.get(key)) for key in ("sentences", "words", "tokens", "unknown"))]
            for name, entry in entries(facts.manifest)
        ],
    )
    inputs = [
        [*name.split(".", 1), Path(str(file["path"])).name, _number(file.get("bytes")), f"`{file['sha256']}`"]
        for name, entry in entries(facts.manifest)
        for file in entry.get("inputs", [])
    ]
    files = _table(["split", "language", "file", "bytes", "sha256"], inputs) if inputs else f"Input files: {UNKNOWN}."
    return f"{counted}\n\n{files}\n\nLineage of the corpus (one hash over inputs, settings and result): `{lineage}`."


def _preprocessing(facts: Facts) -> str:
    text, words = facts.content["text"], facts.content["shape"]["n_words"]
    case = "lower-cased" if text["lowercase"] else "cased"
    accents = "accents removed" if text["remove_accents"] else "accents kept"
    merges = text["codes"].count("\n")
    return (
        "The Moses steps (punctuation replaced and normalised, non-printing characters removed, tokenised by each"
        f" language's rules), {case}, {accents}; then byte-pair encoding, {merges:,} merges shared by the languages."
        f" Vocabulary: {words:,} entries, {len(SPECIALS)} special ones included."
    )


def _hyperparameters(facts: Facts) -> str:
    config = {key: value for key, value in facts.config.items() if key in SETTINGS}
    flat = {key: value for key, value in flatten(config).items() if key not in NOT_SETTINGS and value is not None}
    progress = facts.content["progress"]
    rows = [[f"`{key}`", json.dumps(value)] for key, value in flat.items()]
    tokens = _tokens(facts)
    done = f"{progress['step']:,} steps, {progress['updates']:,} updates"
    done += f", {tokens:,} tokens read" if tokens is not None else ""
    if facts.config.get("imported"):
        params = facts.config["imported"].get("params", {})
        rows += [[f"`{key}` (of the imported checkpoint)", json.dumps(params[key])] for key in PARAMS if key in params]
    return done + ".\n\n" + (_table(["setting", "value"], rows) if rows else f"Settings: {UNKNOWN}.")


def _tokens(facts: Facts) -> int | None:
    if read := [line["progress/tokens"] for line in facts.metrics if "progress/tokens" in line]:
        return int(read[-1])
    tokens = window_tokens(facts.config)
    return None if tokens is None else int(facts.content["progress"]["step"]) * tokens


def _evaluation(facts: Facts) -> str:
    if not facts.evaluations:
        return f"Results: {UNKNOWN}."
    rows = [
        [_text_name(result), code, *(_number(figures.get(measure), 3) for measure in MEASURES)]
        for result in facts.evaluations
        for code, figures in [*result["languages"].items(), ("mean", result.get("mean", {}))]
    ]
    return f"By `xlm-eval`; {kind_of(facts).scores}\n\n" + _table(["text", "language", *MEASURES.values()], rows)


def _text_name(result: Mapping[str, Any]) -> str:
    """Which text was scored, by its corpus's folder name."""
    corpus = f" of {Path(result['corpus']['path']).name}" if "corpus" in result else ""
    return f"{result['split']} split{corpus}" if "split" in result else "raw text, sentence by sentence"


def _region(facts: Facts) -> str:
    return facts.fields.region or (facts.energy or {}).get("region") or UNKNOWN


def _hardware(facts: Facts) -> str:
    trainer = facts.config.get("trainer") or {}
    if facts.environment is None:
        return UNKNOWN
    processes = int(trainer.get("devices", 1)) * int(trainer.get("nodes", 1))
    devices = facts.environment.get("devices") or []
    kind = devices[0] if devices else f"CPU, {facts.environment.get('cpus')} cores"
    return f"{processes} x {kind}" if devices else f"{kind}, {processes} process{'es' if processes > 1 else ''}"


def _measured(facts: Facts, name: str, unit: str) -> str:
    energy = facts.energy or {}
    if energy.get(name) is None:
        return UNKNOWN
    how = [energy.get("method"), energy.get("electricity") if name == "co2_kg" else None]
    said = "; ".join(part for part in how if part)
    return f"{_number(energy[name], 3)} {unit}" + (f" ({said})" if said else "")


def _software(facts: Facts) -> str:
    if not facts.environment:
        return UNKNOWN
    packages = facts.environment.get("packages") or {}
    known = [f"{name} {packages[name]}" for name in ("torch", "pytorch-lightning", "numpy") if name in packages]
    return ", ".join([f"Python {facts.environment['python']}", *known])
