"""The `params` of an original checkpoint: every setting of its run in one flat dict.

What a reader of the original needs from it are the model's shape, the languages and the special ids; its tools
look other settings up without asking whether they are there. Names and types as in checkpoints of the original;
`UNSET` holds the value it gives an option that a causal run does not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from xlm_train.model.transformer import ModelShape
from xlm_train.text.vocabulary import BOS, EOS, PAD, SPECIALS, UNK

MASK = 5  # <special1>
MASKING = (0.8, 0.1, 0.1)  # masked, kept, random: the masked objective's shares, unused here

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


def original_params(
    shape: ModelShape,
    languages: Mapping[str, int],
    counts: Sequence[int],
    config: Mapping[str, Any],
    imported: Mapping[str, Any],
    optimizer: str,
) -> dict[str, Any]:
    """The params of a model of ours.

    counts: of the vocabulary, by id. config: the resolved config of our run, or of an import. imported: the
    params that an imported checkpoint came with; they stand above what is known otherwise, except for what
    describes the model itself. optimizer: in the original's notation.
    """
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    codes = list(languages)
    slot_streams, slots = data.get("slot_streams", 0), data.get("slots", 1)
    return {
        **UNSET,
        "dump_path": "", "exp_name": str(config.get("run_name", "")), "exp_id": "", "command": "", "data_path": "",
        "fp16": trainer.get("precision") == "16-mixed",
        "lgs": "-".join(codes), "clm_steps": [(code, None) for code in codes],
        "mono_dataset": {code: {} for code in codes},
        "lg_sampling_factor": float(data["lang_alpha"]) if data.get("lang_alpha") else -1,
        "bptt": int(data.get("bptt", shape.max_positions)), "batch_size": int(slot_streams * slots), "epoch_size": -1,
        "optimizer": optimizer, "clip_grad_norm": float(trainer.get("clip_norm", 0.0)),
        "stopping_criterion": "", "validation_metrics": "_valid_clm_ppl",
        **imported,
        "emb_dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads, "dropout": float(shape.dropout),
        "attention_dropout": float(shape.attention_dropout), "gelu_activation": True, "share_inout_emb": True,
        "sinusoidal_embeddings": shape.sinusoidal_positions, "use_lang_emb": shape.language_embeddings,
        "langs": codes, "lang2id": dict(languages), "id2lang": {number: code for code, number in languages.items()},
        "n_langs": len(languages), "n_words": shape.n_words,
        "bos_index": BOS, "eos_index": EOS, "pad_index": PAD, "unk_index": UNK, "mask_index": MASK,
        "pred_probs": torch.tensor(MASKING), "mask_scores": mask_scores(counts, imported.get("sample_alpha", 0)),
    }  # fmt: skip


def mask_scores(counts: Sequence[int], alpha: float) -> Any:
    """How readily the masked objective chooses each word: count^-alpha (whole numbers at 0), 0 for special words."""
    scores = np.maximum(np.array(counts, dtype=np.int64), 1) ** -(float(alpha) if alpha else 0)
    scores[: len(SPECIALS)] = 0
    return scores
