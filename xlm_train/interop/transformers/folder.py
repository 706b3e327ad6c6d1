"""A folder that transformers loads (XLMWithLMHeadModel, XLMTokenizer), written and read.

Writing needs neither transformers nor a network. Beside what transformers wants, the folder holds fastBPE's own
`codes` and `vocab`: with them `open_text` prepares raw text exactly as the training text was, which
transformers' own encode() does not (docs/interop.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from xlm_train.interop.original import names, unpickle
from xlm_train.interop.original.checkpoint import Imported
from xlm_train.interop.original.params import is_text, read_languages
from xlm_train.interop.transformers.config import (
    contradictions,
    evaluation_of,
    model_config,
    settings_of,
    token_ids,
    tokenizer_config,
)
from xlm_train.interop.transformers.tokenizer import from_transformers, to_transformers, unreadable_merges
from xlm_train.model.seq2seq import is_seq2seq
from xlm_train.model.transformer import ModelShape
from xlm_train.runtime.errors import CheckpointError
from xlm_train.runtime.files import read_json, sha256_of, write_json
from xlm_train.text.bpe import BpeCodes
from xlm_train.text.reader import TextReader
from xlm_train.text.vocabulary import EOS, NEVER_WRITTEN, SPECIALS, Vocabulary, read_text

RECORD = "export.json"
TEXT = ("codes", "vocab", "vocab.json", "merges.txt")
RECORD_FORMAT = "xlm_train.export"


# -- writing -----------------------------------------------------------------------------------------------------------


def write(folder: Path, content: Mapping[str, Any], lang: str | None = None) -> list[str]:
    """Write weights, config and tokenizer of a checkpoint's content into an existing folder.

    Args:
        folder: Where to write.
        content: Of the checkpoint.
        lang: See `pipeline_language`.

    Returns:
        Warnings: text that transformers' tokenizer cannot treat as ours does.

    Raises:
        CheckpointError: If transformers' XLM cannot be this model, or the BPE codes are not known.
    """
    shape, text = ModelShape(**content["shape"]), content["text"]
    problems = names.unknown_to_original(shape, "transformers' XLM")
    if is_seq2seq(content["model"]):
        problems.append("is a translation model, for which transformers has no class: xlm-export format=xlm writes it")
    if not text["codes"]:
        problems.append("the checkpoint holds no BPE codes, which a tokenizer needs: give codes=FILE")
    if problems:
        raise CheckpointError(problems)
    vocabulary = Vocabulary.from_text(text["vocab"], name="the checkpoint's vocabulary")
    codes = BpeCodes.from_text(text["codes"], name="the BPE codes")

    theirs = names.to_transformers(names.to_original(content["model"], shape, tied=False))
    weights = {name: tensor.float().contiguous() for name, tensor in theirs.items()}
    lowercase, warnings = _lowercase(text)
    masked, spoken = content.get("evaluation") == "masked", 0
    if masked:
        spoken = text["languages"][pipeline_language(text["languages"], lang)]
        if shape.sinusoidal_positions and shape.uses_languages:
            warnings.append("its positions are sinusoidal: a pipeline, which names no language, scores without one")
        elif shape.uses_languages:
            _speak(weights, spoken)
    spelled = to_transformers(vocabulary, codes)
    if spelled.ambiguous:
        warnings.append(
            f"{len(spelled.ambiguous)} words of the vocabulary are spelled like others for transformers, and get the"
            f" others' ids there: {', '.join(spelled.ambiguous[:5])}"
        )
    if lost := unreadable_merges(codes):
        warnings.append(f"{len(lost)} BPE merges hold white space, where transformers splits them: {lost[0]!r}")

    config = model_config(shape, text["languages"], content["config"])
    tokenizer = tokenizer_config(shape, text["languages"], lowercase)
    if masked:
        config |= {"causal": False, "lang_id": spoken}
        # a pipeline's texts then begin as those of the training; older versions would also add embeddings of token types
        tokenizer |= {"bos_token": SPECIALS[EOS], "model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", token_ids("bos", "eos", "pad") | {"suppress_tokens": NEVER_WRITTEN})
    write_json(folder / "tokenizer_config.json", tokenizer)
    write_json(folder / "vocab.json", spelled.ids)
    for name, written in (("merges.txt", codes), ("codes", codes), ("vocab", vocabulary)):
        (folder / name).write_text(written.to_text(), encoding="utf-8", newline="")
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    return warnings


def pipeline_language(languages: Mapping[str, int], lang: str | None) -> str:
    """The language of a masked export's `pipeline("fill-mask")`, which cannot name one.

    Args:
        languages: Language -> id.
        lang: The user's choice; None takes English where the model knows it, else its first language.
    """
    return lang or ("en" if "en" in languages else min(languages, key=lambda code: languages[code]))


def _speak(weights: dict[str, Tensor], language: int) -> None:
    """Make one language the one of a call without `langs`, where transformers adds no language's embedding.

    Its embedding goes into all positions and out of all languages: every sum with `langs` is what it was, but for rounding.
    """
    languages = weights["transformer.lang_embeddings.weight"]
    spoken = languages[language].clone()
    weights["transformer.position_embeddings.weight"] = weights["transformer.position_embeddings.weight"] + spoken
    weights["transformer.lang_embeddings.weight"] = languages - spoken


def _lowercase(text: Mapping[str, Any]) -> tuple[bool, list[str]]:
    """One switch for what are two here, and a warning where that does not do."""
    both = bool(text["lowercase"] and text["remove_accents"])
    if both or not (text["lowercase"] or text["remove_accents"]):
        return both, []
    done = "lower-cased" if text["lowercase"] else "stripped of accents"
    return False, [f"the training text was {done} only, which transformers' tokenizer cannot do: encode text with ours"]


# -- reading -----------------------------------------------------------------------------------------------------------


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read export.json of a folder that `xlm-export` wrote; None of any other folder.

    Raises:
        CheckpointError: If it is damaged, or of another version.
    """
    file = folder / RECORD
    record = read_json(file) if file.is_file() else None
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        return None
    if record.get("version") != 1 or not isinstance(record.get("files"), dict):
        raise CheckpointError(f"{file}: is damaged, or of another version of this program")
    return record


def _refuse_changed(folder: Path, names: Sequence[str]) -> None:
    """Refuse an export of ours whose files are not those that were written: a flipped bit is a weight like any other.

    Raises:
        CheckpointError: A file of those names is another one than export.json records.
    """
    recorded = (read_record(folder) or {"files": {}})["files"]
    if changed := [
        name
        for name in names
        if name in recorded and (folder / name).is_file() and sha256_of(folder / name) != recorded[name]
    ]:
        raise CheckpointError(
            [
                f"{folder / name}: is not what was exported (its checksum is not the one in {RECORD}): it was damaged, or"
                f" changed since; where a change is meant, delete {RECORD}"
                for name in changed
            ]
        )


def open_text(folder: str | Path) -> TextReader:
    """Open the preparation of raw text for an exported model: `open_text(folder).encode(lines, language).ids`.

    Args:
        folder: An export, or a published folder of transformers.

    Returns:
        A reader that gives exactly the ids of the training's own preparation, eos after each line.

    Raises:
        UserError: If the folder lacks something.
    """
    _refuse_changed(Path(folder), TEXT)
    return TextReader(_text_of(Path(folder), codes=None, vocab=None, n_words=None, warnings=[]), name=str(folder))


def read(
    folder: str | Path,
    codes: str | None = None,
    vocab: str | None = None,
    bptt: int | None = None,
    vocab_multiple: int = 1,
    evaluation: str | None = None,
) -> Imported:
    """Make the content of our checkpoint from a folder of transformers' XLMWithLMHeadModel: ours, or a published one.

    Args:
        folder: The folder.
        codes: Text of fastBPE's codes, instead of the folder's own spelling of them.
        vocab: Text of fastBPE's vocabulary: the folder's words in its order, with their counts.
        bptt: Window length of its training in tokens, where the folder does not say.
        vocab_multiple: See ModelShape.
        evaluation: causal or masked, where the folder does not say.

    Returns:
        The content and warnings.

    Raises:
        UserError: If anything is missing, damaged or not supported.
    """
    folder = Path(folder)
    where = str(folder / "config.json")
    config = read_json(folder / "config.json")
    warnings: list[str] = []
    record = read_record(folder) or {}
    _refuse_changed(folder, (_weights_file(folder).name, *TEXT))
    settings = settings_of(config, where)
    evaluation = evaluation_of(config, where, evaluation or record.get("evaluation"), warnings)
    theirs = names.from_transformers(_weights(folder))
    n_langs = settings["n_langs"]
    shape = names.infer_shape(theirs, str(folder), **settings, vocab_multiple=vocab_multiple)
    text = _text_of(folder, codes, vocab, shape.n_words, warnings)
    if len(text["languages"]) != n_langs:
        raise CheckpointError(f"{where}: n_langs={n_langs}, but lang2id names {len(text['languages'])}")
    if problems := contradictions(config, shape, where):
        raise CheckpointError(problems)
    window = bptt or config.get("bptt")
    if window is None:
        warnings.append(
            f"{where}: does not say how long the windows of its training were; give bptt=N (256 for xlm-clm-ende-1024):"
            f" until then all {shape.max_positions} positions are used, trained or not"
        )
    return Imported(
        {
            "shape": shape.to_dict(),
            "model": names.to_ours(theirs, shape, str(folder)),
            "optimizer": None,
            "progress": record.get("progress", {"step": 0, "updates": 0, "skipped": []}),
            "text": text,
            "lineage": record.get("lineage", {"corpus": None, "parents": [sha256_of(_weights_file(folder))]}),
            "metrics": {},
            "evaluation": evaluation,
            "config": {
                "data": {} if window is None else {"bptt": window},
                "imported": {"format": "hf", "file": folder.resolve().name},
            },
        },
        warnings,
    )


def _weights(folder: Path) -> dict[str, Tensor]:
    file = _weights_file(folder)
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from error
    state = unpickle.load(file)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{file}: is not a state dict")
    return dict(state)


def _weights_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: has neither model.safetensors nor pytorch_model.bin in one file")


def _text_of(
    folder: Path, codes: str | None, vocab: str | None, n_words: int | None, warnings: list[str]
) -> dict[str, Any]:
    """The `text` part of a checkpoint. n_words: the model's, where it is known."""
    config, tokenizer = read_json(folder / "config.json"), _optional_json(folder / "tokenizer_config.json")
    words = _words(folder, n_words, warnings)
    record = read_record(folder)
    if vocab is None and record is not None:
        vocab = read_text(folder / "vocab")
    if vocab is None:
        try:
            vocab = Vocabulary((word, 0) for word in words[len(SPECIALS) :]).to_text()
        except ValueError as error:
            raise CheckpointError(f"{folder / 'vocab.json'}: {error}") from error
        warnings.append(
            f"{folder / 'vocab.json'}: does not say how often words occur; vocab=FILE would (fastBPE's file)"
        )
    elif Vocabulary.from_text(vocab, name="vocab").words != words:
        raise CheckpointError(f"{folder / 'vocab.json'}: its words are not those of the vocabulary given, in its order")
    if codes is None:
        file = folder / ("merges.txt" if record is None else "codes")
        codes = _with_counts(read_text(file))
        BpeCodes.from_text(codes, name=str(file))
    languages = read_languages(tokenizer.get("lang2id") or config.get("lang2id"), str(folder / "config.json"))
    if record is not None:
        cleaning = {name: record.get("text", {}).get(name) is True for name in ("lowercase", "remove_accents")}
    else:
        lower = tokenizer.get("do_lowercase_and_remove_accent", True)
        if lower and any(word != word.lower() for word in words):
            warnings.append(
                f"{folder / 'tokenizer_config.json'}: lower-cases text"
                f"{'' if 'do_lowercase_and_remove_accent' in tokenizer else ' (by default)'}, but the vocabulary has"
                " capitals: taken as not lower-casing; set do_lowercase_and_remove_accent=false there"
            )
            lower = False
        cleaning = {"lowercase": lower, "remove_accents": lower}
    return {"languages": languages, "vocab": vocab, "codes": codes, **cleaning}


def _words(folder: Path, n_words: int | None, warnings: list[str]) -> list[str]:
    file = folder / "vocab.json"
    ids = read_json(file)
    if (
        not isinstance(ids, dict)
        or not ids
        or not all(type(number) is int and is_text(word) for word, number in ids.items())
    ):
        raise CheckpointError(f"{file}: is not a table of words and ids")
    try:
        words = from_transformers(ids, n_words or max(ids.values()) + 1)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if (missing := words.count(None)) > 0:
        warnings.append(f"{file}: no word has {missing} of the ids; they are called <unused..> here and never written")
    named = [f"<unused{number}>" if word is None else word for number, word in enumerate(words)]
    if tuple(named[: len(SPECIALS)]) != SPECIALS:
        raise CheckpointError(f"{file}: does not begin with the {len(SPECIALS)} special words")
    return named


def _with_counts(merges: str) -> str:
    """merges.txt as fastBPE's codes: a merge without its count gets 0, a comment at the top goes."""
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    return "".join(line + ("\n" if len(line.split(" ")) == 3 else " 0\n") for line in lines)


def _optional_json(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a table of settings")
    return value
