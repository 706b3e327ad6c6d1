"""What is inside a checkpoint.

In format version 3 it is Lightning's own checkpoint dict (state_dict, optimizer_states, loops, callbacks, ...) and:
    format, version
    shape        ModelShape as a dict
    train_state  step (attempts), updates, skipped steps, loss scale, patience, best metrics, losses not yet reported
    text         languages {code: id}, vocab, codes (both as text), lowercase, remove_accents: to read new text
    lineage      corpus: its lineage hash; parents: hashes of the checkpoints this one descends from (init_from, import)
    metrics      last validation metrics
    config       the resolved config of the run
    evaluation   how its model is scored, which its objective said; older files lack it, they are "causal"
Version 2 held the same under other names; it is converted when it is read.

`load` and `save` show a checkpoint as everybody but the Trainer needs it: weights by their names in the model, and
    model, optimizer (None where there is none), progress (the train state), shape, text, lineage, metrics, config,
    evaluation.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

from xlm_train.runtime.errors import CheckpointError

FORMAT = "xlm_train.checkpoint"
VERSION = 3
VIEWED = (  # keys that are the same inside and in a view
    "shape", "text", "lineage", "metrics", "config", "evaluation", "sha256",
)  # fmt: skip
NEEDED = {  # mappings inside, and what each has at least
    "state_dict": (),
    "train_state": ("step", "updates"),
    "shape": ("n_words", "n_langs"),
    "text": ("languages", "vocab", "codes", "lowercase", "remove_accents"),
    "lineage": ("corpus", "parents"),
    "config": (),
}
OF_VERSION_2 = {
    {"state_dict": "model", "train_state": "progress"}.get(key, key): inner for key, inner in NEEDED.items()
}
PREFIX = "model."  # of the weights' names in a Lightning module that holds the model as `model`


def settled(content: Any) -> dict[str, Any]:
    """Check what was read, and convert an earlier version.

    Args:
        content: whatever a file held.

    Returns:
        The content as version 3 has it.

    Raises:
        CheckpointError: it is no checkpoint, of a version that is not read here, or lacks what every checkpoint has.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError("is not a checkpoint of xlm_train")
    if content.get("version") not in (2, VERSION):
        raise CheckpointError(f"checkpoint version {content.get('version')}, this program reads 2 and {VERSION}")
    needed = OF_VERSION_2 if content["version"] == 2 else NEEDED
    if lacking := [key for key, inner in needed.items() if not _has(content.get(key), inner)]:
        raise CheckpointError(f"holds no whole {', '.join(lacking)}: not written by this program")
    return _from_version_2(content) if content["version"] == 2 else content


def _has(part: Any, names: Iterable[str]) -> bool:
    return isinstance(part, dict) and all(name in part for name in names)


def to_view(content: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what `read` returns into a view.

    Args:
        content: what is inside a checkpoint, version 3.

    Returns:
        The view (see the module's docstring); tensors are shared with `content`.
    """
    states = content.get("optimizer_states") or [None]
    return {
        **{key: content[key] for key in VIEWED if key in content},
        "model": {name.removeprefix(PREFIX): weight for name, weight in content["state_dict"].items()},
        "optimizer": states[0],
        "progress": content["train_state"],
    }


def from_view(view: Mapping[str, Any]) -> dict[str, Any]:
    """Put a view into Lightning's dict, without the parts that only a running Trainer has."""
    return {
        "epoch": 0,
        "global_step": view["progress"].get("updates", 0),
        "pytorch-lightning_version": importlib.metadata.version("pytorch-lightning"),
        "state_dict": {PREFIX + name: weight for name, weight in view["model"].items()},
        "optimizer_states": [] if view.get("optimizer") is None else [view["optimizer"]],
        "lr_schedulers": [],
        "callbacks": {},
        "train_state": dict(view["progress"]),
        **{key: view[key] for key in VIEWED if key in view and key != "sha256"},
    }


def _from_version_2(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert what version 2 held: no loops of Lightning's, the losses and the anomaly detector's history apart."""
    converted = from_view(content)
    converted["train_state"]["losses"] = content.get("ledger", [])  # xlm-import wrote neither
    converted["callbacks"]["AnomalyDetector"] = {"history": content.get("guard", {})}
    return converted
