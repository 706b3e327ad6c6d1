"""The original's checkpoints (.pth), to ours and back.

One is a dict of epoch, n_total_iter, best_metrics, best_stopping_criterion, model, dico_id2word, dico_word2id,
dico_counts and params; with model_optimizer where training can go on from it. A translation model has encoder and
decoder instead of model; its optimizer's state is neither read nor written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlm_train.interop.original import names, unpickle
from xlm_train.interop.original.params import (
    from_vocabulary,
    original_params,
    plain_settings,
    read_languages,
    to_vocabulary,
)
from xlm_train.interop.original.steps import evaluation_of, metric_of, steps_of
from xlm_train.model.seq2seq import SIDES, is_seq2seq, side_of
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime.checkpoint_file import save_into
from xlm_train.runtime.errors import CheckpointError
from xlm_train.runtime.files import atomic_write, sha256_of
from xlm_train.text.vocabulary import Vocabulary

COUNTERS = ("epoch", "n_total_iter", "best_metrics", "best_stopping_criterion")
CHECKPOINT_KEYS = (*COUNTERS, "dico_id2word", "dico_word2id", "dico_counts", "params")
SUPPORTED = {"gelu_activation": True, "share_inout_emb": True, "asm": False, "use_memory": False}
POSITIONS = 512  # of every model of the original's
NO_METRIC = 1e12  # what the original holds as its best perplexity before the first evaluation


@dataclass
class Imported:
    """A file brought into our form.

    Attributes:
        content: Of our checkpoint.
        warnings: What the user should know.
    """

    content: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


# -- reading -----------------------------------------------------------------------------------------------------------


def import_checkpoint(
    path: str | Path, codes: str = "", with_optimizer: bool = True, vocab_multiple: int = 1
) -> Imported:
    """Make the content of our checkpoint from one of the original's.

    Args:
        path: The .pth.
        codes: Text of the BPE codes, which the original's files do not hold.
        with_optimizer: Take Adam's moments and the update count too, where the file has them.
        vocab_multiple: See ModelShape.

    Returns:
        The content and warnings.

    Raises:
        CheckpointError: If the file is unsafe or damaged, or its model is not supported.
    """
    path = Path(path)
    raw = unpickle.load(path)
    found = set(raw) if isinstance(raw, dict) else set()
    sides = SIDES if found.issuperset(SIDES) else ("model",)
    if missing := [key for key in (*CHECKPOINT_KEYS, *sides) if key not in found]:
        raise CheckpointError(f"{path}: is not a checkpoint of the original: lacks {', '.join(missing)}")
    params = plain_settings(raw["params"], path)
    if not all(_is_tensors(raw[side]) for side in sides) or not isinstance(params, dict):
        raise CheckpointError(f"{path}: its {' or '.join(sides)} is not a state dict, or its params are not a dict")
    theirs = {side: names.without_prefix(raw[side], "module.") for side in sides}
    languages = read_languages(params.get("lang2id"), f"{path}: its params")
    _refuse_other_models(params, path)
    shape = names.infer_shape(
        theirs[sides[0]],
        str(path),
        n_langs=len(languages),
        n_heads=_number(params, "n_heads", path, int),
        dropout=_number(params, "dropout", path),
        attention_dropout=_number(params, "attention_dropout", path),
        sinusoidal_positions=bool(params.get("sinusoidal_embeddings")),
        vocab_multiple=vocab_multiple,
    )
    vocabulary = to_vocabulary(raw["dico_id2word"], raw["dico_word2id"], raw["dico_counts"], path)
    if len(vocabulary) != shape.n_words:
        raise CheckpointError(f"{path}: its dictionary has {len(vocabulary)} words, its embeddings {shape.n_words}")
    warnings = []
    if any(tensor.dtype != torch.float32 for state in theirs.values() for tensor in state.values()):
        warnings.append("its weights are not all float32: they become so here")
    optimizer, updates = None, 0
    if with_optimizer and raw.get("model_optimizer") is not None:
        if sides == SIDES:
            warnings.append("its optimizer state is left out: of a translation model only the weights are taken")
        else:
            optimizer, updates = _read_adam(raw["model_optimizer"], shape, path)
    bptt = params.get("bptt")
    return Imported(
        {
            "shape": shape.to_dict(),
            "model": _to_ours(theirs, shape, str(path)),
            "optimizer": optimizer,
            "progress": {"step": updates, "updates": updates, "skipped": []},
            "text": {
                "languages": languages,
                "vocab": vocabulary.to_text(),
                "codes": codes,
                "lowercase": False,
                "remove_accents": False,
            },
            "lineage": {"corpus": None, "parents": [sha256_of(path)]},
            "metrics": {},
            "evaluation": evaluation_of(params, sides),
            "config": {
                "data": {"bptt": bptt} if isinstance(bptt, int) and bptt > 1 else {},
                "imported": {
                    "format": "xlm",
                    "file": path.name,
                    **{key: plain_settings(raw[key], path) for key in COUNTERS},
                    "params": params,
                },
            },
        },
        warnings,
    )


def _to_ours(theirs: Mapping[str, Mapping[str, Tensor]], shape: ModelShape, path: str) -> dict[str, Tensor]:
    """Of one model, or of an encoder and a decoder under these names."""
    if "model" in theirs:
        return names.to_ours(theirs["model"], shape, path)
    return {
        f"{side}.{name}": tensor
        for side, state in theirs.items()
        for name, tensor in names.to_ours(state, shape, f"{path}: {side}", reads_source=side == "decoder").items()
    }


def _is_tensors(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())


def _number(params: Mapping[str, Any], name: str, path: Path, kind: type[int] | type[float] = float) -> Any:
    value = params.get(name)
    if not isinstance(value, kind | int) or isinstance(value, bool) or not 0 <= value <= 1e6:
        raise CheckpointError(f"{path}: its params do not say {name}")
    return kind(value)


def _refuse_other_models(params: Mapping[str, Any], path: Path) -> None:
    problems = [
        f"{path}: its model has {name}={not only}, which is not supported"
        for name, only in SUPPORTED.items()
        if name in params and bool(params[name]) is not only
    ]
    if problems:
        raise CheckpointError(problems)


def _read_adam(raw: Any, shape: ModelShape, path: Path) -> tuple[dict[str, Any], int]:
    """Adam's state under our names, and how many updates it has made."""
    expected = names.original_trained(shape)
    problem = CheckpointError(
        f"{path}: its optimizer state is not that of the original's Adam; optimizer=false leaves it out"
    )
    try:
        (group,) = raw["param_groups"]
        if not all(type(key) is int for key in group["params"]):  # what else is in a list must not be hashed
            raise problem
        states = [raw["state"][key] for key in group["params"]]
        settings = {name: plain_settings(group[name], path) for name in ("lr", "betas", "eps", "weight_decay")}
        steps = {int(state["step"]) for state in states}
        moments = {
            name: dict(zip(expected, (state[name] for state in states), strict=True))
            for name in ("exp_avg", "exp_avg_sq")
        }
        updates = int(group.get("num_updates", max(steps)))
        betas = tuple(settings["betas"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise problem from error
    if len(steps) != 1 or not 0 <= updates < 2**53 or not all(_is_tensors(moment) for moment in moments.values()):
        raise problem
    ours = {
        name: names.to_ours(moment, shape, f"{path}: {name}", trained_only=True) for name, moment in moments.items()
    }
    order = names.our_trained(shape)
    return {
        "state": {
            number: {"step": torch.tensor(float(*steps)), **{kind: ours[kind][name] for kind in ours}}
            for number, name in enumerate(order)
        },
        "param_groups": [{**settings, "betas": betas, "params": list(range(len(order)))}],
    }, updates


# -- writing -----------------------------------------------------------------------------------------------------------


def export_checkpoint(path: str | Path, content: Mapping[str, Any], with_optimizer: bool = True) -> None:
    """Write our checkpoint as one of the original's, atomically: its keys, names and types, readable without our code.

    What the original counts and we do not (epochs) is that of the import, or 0; n_total_iter is the update count.

    Args:
        path: The .pth to write.
        content: Of our checkpoint.
        with_optimizer: Write Adam's moments too, where the checkpoint has them.

    Raises:
        CheckpointError: If the optimizer has parameters in several groups.
    """
    shape = ModelShape(**content["shape"])
    text, config = content["text"], content["config"]
    imported = config.get("imported") or {}
    if imported.get("format") != "xlm":
        imported = {}
    vocabulary = Vocabulary.from_text(text["vocab"], name="the checkpoint's vocabulary")
    updates = int(content["progress"]["updates"])
    progress = content["progress"]
    best = progress.get("best_metric") if progress.get("monitor", "val/ppl") == "val/ppl" else None
    steps = steps_of(config, list(text["languages"]), content.get("evaluation", "causal"))
    record = {
        "epoch": imported.get("epoch", 0),
        "n_total_iter": imported.get("n_total_iter", updates),
        "best_metrics": imported.get("best_metrics", {metric_of(steps): NO_METRIC if best is None else best}),
        "best_stopping_criterion": imported.get("best_stopping_criterion", NO_METRIC if best is None else best),
    }
    translates = is_seq2seq(content["model"])
    if translates:
        for side in SIDES:
            state = side_of(content["model"], side)
            record[side] = _own_tensors(names.to_original(state, shape, reads_source=side == "decoder"))
    else:
        record["model"] = _own_tensors(names.to_original(content["model"], shape))
    adam = content["optimizer"] if with_optimizer and not translates else None
    if adam is not None:
        record["model_optimizer"] = _write_adam(adam, shape, updates)
    record |= {f"dico_{name}": part for name, part in from_vocabulary(vocabulary).items()}
    record["params"] = original_params(
        shape, text["languages"], vocabulary.counts, config, steps, imported.get("params", {}), _optimizer_text(config)
    )
    record["params"]["encoder_only"] = not translates
    with atomic_write(path) as file:
        save_into(file, _with_numpy_metrics(record))


def fit_to_original(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Bring a checkpoint's content to the sizes that the original's code fixes: it always has 512 positions.

    Positions that are missing are added: zeros where positions are learned, which training has never reached, else the
    sinusoids that follow.

    Args:
        content: Of our checkpoint.

    Returns:
        Its content, and what was changed.

    Raises:
        CheckpointError: The original cannot be this model.
    """
    shape = ModelShape(**content["shape"])
    problems = names.unknown_to_original(shape, "the original")
    if shape.max_positions > POSITIONS:
        problems.append(
            f"model.max_positions={shape.max_positions}: the original always has {POSITIONS}; such a model cannot be exported"
        )
    if problems:
        raise CheckpointError(problems)
    if shape.max_positions == POSITIONS:
        return dict(content), []
    name, padded = "position_embeddings.weight", replace(shape, max_positions=POSITIONS)
    rows = torch.zeros(POSITIONS, shape.dim)
    if shape.sinusoidal_positions:
        rows = XLM(replace(padded, n_words=10, n_layers=1)).state_dict()[name]

    def lengthened(tensor: Tensor, more: Tensor) -> Tensor:
        return torch.cat([tensor, more[len(tensor) :].to(tensor)])

    weights = {key: lengthened(value, rows) if key.endswith(name) else value for key, value in content["model"].items()}
    fitted = {**content, "shape": padded.to_dict(), "model": weights}
    adam = None if is_seq2seq(weights) else content["optimizer"]
    if adam is not None and adam["state"] and not shape.sinusoidal_positions:
        number = names.our_trained(shape).index(name)
        moments = {
            key: lengthened(value, rows) if key.startswith("exp_avg") else value
            for key, value in adam["state"][number].items()
        }
        fitted["optimizer"] = {**adam, "state": {**adam["state"], number: moments}}
    return fitted, [
        f"the original always has {POSITIONS} positions, this model has {shape.max_positions}: those missing were added,"
        " untrained; keep its windows that short"
    ]


def _own_tensors(theirs: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Each on memory of its own, as torch.save writes whole storages; the tied weights stay one."""
    own = OrderedDict(
        (name, tensor.clone(memory_format=torch.contiguous_format))
        for name, tensor in theirs.items()
        if name != names.TIED
    )
    return OrderedDict((name, own["embeddings.weight"] if name == names.TIED else own[name]) for name in theirs)


def _with_numpy_metrics(record: dict[str, Any]) -> dict[str, Any]:
    """Measured metrics are numpy numbers in the original's files, the one before the first evaluation is Python's."""

    def measured(value: Any) -> Any:
        return np.float64(value) if isinstance(value, float) and value != NO_METRIC else value

    metrics = {name: measured(value) for name, value in record["best_metrics"].items()}
    return {**record, "best_metrics": metrics, "best_stopping_criterion": measured(record["best_stopping_criterion"])}


def _write_adam(adam: Mapping[str, Any], shape: ModelShape, updates: int) -> dict[str, Any]:
    """Adam's state in torch's layout -> in the original's."""
    if len(adam["param_groups"]) != 1:
        raise CheckpointError(
            "the checkpoint's optimizer has parameters in several groups; export with optimizer=false"
        )
    (group,) = adam["param_groups"]
    ours = names.our_trained(shape)
    moments = {
        kind: _own_tensors(
            names.to_original({n: adam["state"][i][kind] for i, n in enumerate(ours)}, shape, tied=False)
        )
        for kind in ("exp_avg", "exp_avg_sq")
    }
    step = int(adam["state"][0]["step"]) if adam["state"] else 0
    order = names.original_trained(shape)
    return {
        "state": {i: {"step": step, **{kind: moments[kind][name] for kind in moments}} for i, name in enumerate(order)},
        "param_groups": [
            {
                "lr": float(group["lr"]),
                "betas": tuple(group["betas"]),
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
                "num_updates": updates,
                "params": list(range(len(order))),
            }
        ],
    }


def _optimizer_text(config: Mapping[str, Any]) -> str:
    """Our optimizer and schedule in the original's notation; nothing where it has none for it."""
    adam, schedule = config.get("optimizer") or {}, config.get("schedule") or {}
    if not {"lr", "betas", "eps", "weight_decay"} <= adam.keys():
        return ""
    numbers = {"lr": adam["lr"], "beta1": adam["betas"][0], "beta2": adam["betas"][1]}
    numbers |= {name: adam[name] for name in ("weight_decay", "eps")}
    # the original's notation has no exponents
    settings = ",".join(f"{name}={np.format_float_positional(value, trim='-')}" for name, value in numbers.items())
    kind = str(schedule.get("_target_", "")).rpartition(".")[2]
    if kind == "inverse_sqrt":
        return f"adam_inverse_sqrt,{settings},warmup_updates={schedule['warmup_updates']}"
    return f"adam,{settings}" if kind == "constant" else ""
