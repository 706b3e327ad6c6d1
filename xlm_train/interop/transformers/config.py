"""config.json and tokenizer_config.json of transformers' XLM: what we write there, and what we read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlm_train.config.schema import fits
from xlm_train.model.transformer import LAYER_NORM_EPS, ModelShape
from xlm_train.runtime.errors import CheckpointError
from xlm_train.text.vocabulary import BOS, EOS, MASK, PAD, SPECIALS, UNK

DEFAULTS = {  # of transformers' XLMConfig, for what a config.json may leave out
    "n_langs": 1, "n_heads": 16, "dropout": 0.1, "attention_dropout": 0.1, "sinusoidal_embeddings": False,
}  # fmt: skip
ONLY = {"gelu_activation": True, "asm": False, "is_encoder": True, "tie_word_embeddings": True}  # is supported
SPECIAL_IDS = {"bos": BOS, "eos": EOS, "pad": PAD, "unk": UNK, "mask": MASK}
# What is said twice: in config.json, and by the weights or by how the model is computed here.
TWICE = ("emb_dim", "n_layers", "n_words", "max_position_embeddings", "use_lang_emb", "layer_norm_eps")


def token_ids(*kinds: str) -> dict[str, int]:
    """Give special ids under the names of new versions of transformers."""
    return {f"{kind}_token_id": SPECIAL_IDS[kind] for kind in kinds}


def model_config(shape: ModelShape, languages: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """Make config.json. Special ids are under the names of old and new versions of transformers.

    Args:
        shape: The model's.
        languages: Language -> id.
        config: The resolved config of the run; the length of its windows is noted where it is known.

    Returns:
        What is in config.json.
    """
    bptt = (config.get("data") or {}).get("bptt")
    return {
        "architectures": ["XLMWithLMHeadModel"], "model_type": "xlm",
        "vocab_size": shape.n_words, "n_words": shape.n_words,
        "emb_dim": shape.dim, "n_layers": shape.n_layers, "n_heads": shape.n_heads,
        "dropout": shape.dropout, "attention_dropout": shape.attention_dropout,
        "gelu_activation": True, "sinusoidal_embeddings": shape.sinusoidal_positions,
        "causal": True,  # their default is False: the model would see the words it is to predict
        "is_encoder": True,  # nothing else is implemented; it says nothing of what a position sees
        "asm": False,
        "n_langs": shape.n_langs, "use_lang_emb": shape.language_embeddings,
        "lang2id": dict(languages), "id2lang": {str(number): code for code, number in languages.items()}, "lang_id": 0,
        "max_position_embeddings": shape.max_positions, "embed_init_std": shape.dim**-0.5,
        "layer_norm_eps": LAYER_NORM_EPS,
        **{f"{kind}_index": number for kind, number in SPECIAL_IDS.items()},
        **token_ids("bos", "eos", "pad", "mask"),
        "tie_word_embeddings": True, "dtype": "float32",
        **({"bptt": bptt} if bptt else {}),
    }  # fmt: skip


def tokenizer_config(shape: ModelShape, languages: Mapping[str, int], lowercase: bool) -> dict[str, Any]:
    """Make tokenizer_config.json. Without both language tables transformers' tokenizer has neither.

    Args:
        shape: The model's.
        languages: Language -> id.
        lowercase: Lower-case text and remove accents.

    Returns:
        What is in tokenizer_config.json.
    """
    return {
        "tokenizer_class": "XLMTokenizer",
        "do_lowercase_and_remove_accent": lowercase,
        "lang2id": dict(languages), "id2lang": {str(number): code for code, number in languages.items()},
        "model_max_length": shape.max_positions,
        "bos_token": SPECIALS[BOS], "sep_token": SPECIALS[EOS], "cls_token": SPECIALS[EOS],
        "pad_token": SPECIALS[PAD], "unk_token": SPECIALS[UNK], "mask_token": SPECIALS[MASK],
        "additional_special_tokens": list(SPECIALS[4:]),
    }  # fmt: skip


def settings_of(config: Any, where: str) -> dict[str, Any]:
    """Read what the weights do not tell, as `names.infer_shape` takes it.

    Args:
        config: What config.json holds.
        where: The file, for messages.

    Raises:
        CheckpointError: It is no config of XLM, or says what is not supported; with everything wrong.
    """
    if not isinstance(config, dict) or config.get("model_type", "xlm") != "xlm":
        raise CheckpointError(f"{where}: is not the config of an XLM model")
    settings = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    wrong = [
        f"{where}: {name} is not {type(default).__name__}"
        for name, default in DEFAULTS.items()
        if not fits(settings[name], type(default))
    ]
    wrong += [
        f"{where}: {name}={config[name]} is not supported"
        for name, only in ONLY.items()
        if config.get(name, only) is not only
    ]
    bptt = config.get("bptt")
    if bptt is not None and (not fits(bptt, int) or bptt < 2):
        wrong.append(f"{where}: bptt={bptt}: must be a whole number of at least 2")
    if wrong:
        raise CheckpointError(wrong)
    settings["sinusoidal_positions"] = settings.pop("sinusoidal_embeddings")
    return settings


def contradictions(config: Mapping[str, Any], shape: ModelShape, where: str) -> list[str]:
    """List what config.json says otherwise than the weights, or than any model here can be.

    Args:
        config: What it holds.
        shape: By the weights.
        where: The file, for messages.
    """
    known = model_config(shape, {}, {})
    keys = [*TWICE, *(f"{kind}_index" for kind in SPECIAL_IDS)]
    if shape.n_langs == 1:
        keys.remove("use_lang_emb")  # published models of one language say true and have none
    return [
        f"{where}: {key}={config[key]}, but the model's is {known[key]}"
        for key in keys
        if key in config and config[key] != known[key]
    ]


def evaluation_of(config: Mapping[str, Any], where: str, evaluation: str | None, warnings: list[str]) -> str:
    """Say how a model is scored: causal or masked.

    Args:
        config: What config.json holds.
        where: The file, for messages.
        evaluation: What is known besides.
        warnings: A guess is told in one more.
    """
    if config.get("causal") is not True and evaluation is None:
        said = "does not say `causal`" if "causal" not in config else "says causal=false"
        warnings.append(
            f"{where}: {said}, which is also the default: it is taken for a model that predicts the next word; for one that fills"
            " gaps give evaluation=masked. transformers itself would let this model see the words it is to predict: set"
            " causal=true there"
        )
    return evaluation or "causal"
