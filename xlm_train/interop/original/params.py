"""What the original's files say beside numbers: the settings of a run (`params`), languages and the dictionary.

`params` holds every setting in one flat dict. What a reader of the original needs from it are the model's shape, the
languages and the special ids; its tools look other settings up without asking whether they are there. Names and types
as in checkpoints of the original; `UNSET` holds the value it gives an option that a causal run does not use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xlm_train.model.transformer import ModelShape
from xlm_train.runtime.errors import CheckpointError, UserError
from xlm_train.text.vocabulary import BOS, EOS, MASK, PAD, SPECIALS, UNK, Vocabulary

LANGUAGE = re.compile(r"\w[\w.-]{0,19}")
MOST_VALUES = 100_000  # a small pickle can spell a tree without end
MASKING = (0.8, 0.1, 0.1)  # masked, kept, random: its default shares

OBJECTIVES = ("clm", "mlm", "pc", "ae", "mt", "bt")
UNSET: dict[str, Any] = {
    **{f"lambda_{objective}": 1.0 for objective in OBJECTIVES},
    **{f"lambda_{objective}_config": None for objective in OBJECTIVES},
    **{f"{objective}_steps": [] for objective in OBJECTIVES},
    # one process
    "n_nodes": 1, "node_id": 0, "world_size": 1, "n_gpu_per_node": 1, "global_rank": 0, "local_rank": 0,
    "master_port": -1, "is_master": True, "multi_node": False, "multi_gpu": False, "is_slurm_job": False,
    # a Transformer encoder without memory layers and with a plain softmax
    "encoder_only": True, "use_memory": False, "asm": False, "context_size": 0, "amp": -1,
    # data
    "max_vocab": -1, "min_count": 0, "max_len": 100, "group_by_size": True, "max_batch_size": 0, "tokens_per_batch": -1,
    "split_data": False, "para_dataset": {}, "bt_src_langs": [],
    # masking and noise
    "word_pred": 0.15, "word_mask_keep_rand": ",".join(map(str, MASKING)), "word_mask": MASKING[0],
    "word_keep": MASKING[1], "word_rand": MASKING[2], "sample_alpha": 0,
    "word_shuffle": 0, "word_dropout": 0, "word_blank": 0,
    # the rest
    "max_epoch": 100000, "accumulate_gradients": 1, "save_periodic": 0, "reload_emb": "", "reload_model": "",
    "reload_checkpoint": "", "beam_size": 1, "length_penalty": 1, "early_stopping": False, "eval_bleu": False,
    "eval_only": False, "debug_train": False, "debug_slurm": False, "debug": False,
}  # fmt: skip


# -- reading -----------------------------------------------------------------------------------------------------------


def is_text(value: str) -> bool:
    """Tell whether a string is Unicode text: pickles can hold half a surrogate pair, which no file can."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def read_languages(value: Any, where: str) -> dict[str, int]:
    """Check a table of languages and ids (lang2id), and sort it by id.

    Args:
        value: What a file has in its place.
        where: The file's name, for messages.

    Returns:
        Language -> id.

    Raises:
        CheckpointError: If it is no such table.
    """
    if (
        not isinstance(value, dict)
        or not value
        or not all(isinstance(code, str) and LANGUAGE.fullmatch(code) for code in value)
        or not all(type(number) is int for number in value.values())
        or {*value.values()} != {*range(len(value))}
    ):
        raise CheckpointError(f"{where}: does not say the languages (lang2id)")
    return dict(sorted(value.items(), key=lambda item: item[1]))


def plain_settings(value: Any, path: Path) -> Any:
    """Copy settings with nothing in them but dicts, lists, tuples, text, truth values and Python's numbers.

    numpy numbers become Python's; arrays and tensors are left out of dicts (the original keeps some in its
    params; all follow from the rest).

    Args:
        value: Settings out of a file, mostly a dict.
        path: The file, for messages.

    Returns:
        The copy.

    Raises:
        CheckpointError: If anything else is in it, or too much.
    """
    left = MOST_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 10:
            raise CheckpointError(f"{path}: its params are too large or too deep to be settings")
        if value is None or type(value) in (bool, int, float) or (type(value) is str and is_text(value)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {
                key: copy(item, depth + 1) for key, item in value.items() if not isinstance(item, np.ndarray | Tensor)
            }
        if type(value) in (list, tuple):
            return type(value)(copy(item, depth + 1) for item in value)
        raise CheckpointError(f"{path}: its params hold a {type(value).__name__}")

    return copy(value, 0)


def to_vocabulary(id2word: Any, word2id: Any, counts: Any, path: Path) -> Vocabulary:
    """Turn the three dicts of the original's dictionary into one vocabulary.

    Args:
        id2word: Id -> word.
        word2id: Word -> id.
        counts: Word -> how often it occurs.
        path: The file that they are from, for messages.

    Returns:
        The vocabulary.

    Raises:
        CheckpointError: If the dicts do not agree, or hold what no vocabulary file can.
    """
    if not all(isinstance(part, dict) for part in (id2word, word2id, counts)):
        raise CheckpointError(f"{path}: its dictionary is damaged")
    words = [id2word.get(number) for number in range(len(id2word))]
    if (
        not all(isinstance(word, str) and is_text(word) for word in words)
        or {word: number for number, word in enumerate(words)} != word2id
        or counts.keys() != word2id.keys()
        or not all(isinstance(count, int) for count in counts.values())
    ):
        raise CheckpointError(f"{path}: its dictionary is damaged: ids, words and counts do not belong together")
    if tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise CheckpointError(f"{path}: its dictionary does not begin with the {len(SPECIALS)} special words")
    vocabulary = Vocabulary((word, counts[word]) for word in words[len(SPECIALS) :])
    try:
        again = Vocabulary.from_text(vocabulary.to_text(), name=f"{path}: dictionary")
    except UserError as error:
        raise CheckpointError(error.problems) from error
    if again.words != vocabulary.words:
        raise CheckpointError(
            f"{path}: its dictionary has words with white space in them, which no vocabulary file can hold"
        )
    return vocabulary


# -- writing -----------------------------------------------------------------------------------------------------------


def original_params(
    shape: ModelShape,
    languages: Mapping[str, int],
    counts: Sequence[int],
    config: Mapping[str, Any],
    steps: Mapping[str, Any],
    imported: Mapping[str, Any],
    optimizer: str,
) -> dict[str, Any]:
    """Make the params of a model of ours.

    Args:
        shape: The model's.
        languages: Language -> id.
        counts: Of the vocabulary, by id.
        config: The resolved config of our run, or of an import.
        steps: What it has learned, in the original's options.
        imported: The params that an imported checkpoint came with; they stand above what is known otherwise, except
            for what describes the model itself.
        optimizer: In the original's notation.

    Returns:
        The params, names and types as the original has them.
    """
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    codes = list(languages)
    slot_streams, slots = data.get("slot_streams", 0), data.get("slots", 1)
    settings = {
        **UNSET,
        "dump_path": "", "exp_name": str(config.get("run_name", "")), "exp_id": "", "command": "", "data_path": "",
        "fp16": trainer.get("precision") == "16-mixed",
        "lgs": "-".join(codes),
        "mono_dataset": {code: {} for code in codes},
        "lg_sampling_factor": float(data["lang_alpha"]) if data.get("lang_alpha") else -1,
        "bptt": int(data.get("bptt", shape.max_positions)), "batch_size": int(slot_streams * slots), "epoch_size": -1,
        "optimizer": optimizer, "clip_grad_norm": float(trainer.get("clip_norm", 0.0)),
        "stopping_criterion": "", "validation_metrics": "",
        **steps,
        **imported,
    }  # fmt: skip
    return {
        **settings,
        "emb_dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "dropout": float(shape.dropout),
        "attention_dropout": float(shape.attention_dropout), "gelu_activation": True, "share_inout_emb": True,
        "sinusoidal_embeddings": shape.sinusoidal_positions, "use_lang_emb": shape.language_embeddings,
        "langs": codes, "lang2id": dict(languages), "id2lang": {number: code for code, number in languages.items()},
        "n_langs": len(languages), "n_words": shape.n_words,
        "bos_index": BOS, "eos_index": EOS, "pad_index": PAD, "unk_index": UNK, "mask_index": MASK,
        "pred_probs": torch.tensor([float(settings[f"word_{kind}"]) for kind in ("mask", "keep", "rand")]),
        "mask_scores": mask_scores(counts, settings["sample_alpha"]),
    }  # fmt: skip


def mask_scores(counts: Sequence[int], alpha: float) -> Any:
    """Weigh how readily the masked objective chooses each word.

    Args:
        counts: Of the vocabulary, by id.
        alpha: The original's sample_alpha.

    Returns:
        count^-alpha (whole numbers at alpha 0), 0 for special words, (words,).
    """
    scores = np.maximum(np.array(counts, dtype=np.int64), 1) ** -(float(alpha) if alpha else 0)
    scores[: len(SPECIALS)] = 0
    return scores


def from_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """Make id2word, word2id and counts, as the original's Dictionary and its checkpoints hold them."""
    return {
        "id2word": dict(enumerate(vocabulary.words)),
        "word2id": {word: number for number, word in enumerate(vocabulary.words)},
        "counts": dict(zip(vocabulary.words, vocabulary.counts, strict=True)),
    }
