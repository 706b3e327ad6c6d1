"""Small corpora and checkpoints for the tests of reading, scoring and generating."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import golden_pieces
from xlm_train.data.sentence_files import Pairs, open_sentences, write_length_order

CorpusMaker = Callable[..., Path]
CheckpointMaker = Callable[..., Path]
EOS = 1


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def make_corpus() -> CorpusMaker:
    """make(folder, vocab text, codes text, {split: {language: [sentence ids, without eos]}}, languages) -> folder.

    Writes the corpus format by its description, not with data_prep: two shards a stream, where there are two sentences.
    `pairs` is {split: {"de-en": {language: [sentence ids, without eos]}}}.
    """

    def make(
        folder: Path,
        vocab: str,
        codes: str,
        splits: Mapping[str, Mapping[str, Sequence[Sequence[int]]]],
        languages: Mapping[str, int] | None = None,
        counts: Mapping[str, int] | None = None,
        pairs: Mapping[str, Mapping[str, Mapping[str, Sequence[Sequence[int]]]]] | None = None,
    ) -> Path:
        folder.mkdir(parents=True)
        (folder / "vocab").write_text(vocab, encoding="utf-8", newline="")
        (folder / "codes").write_text(codes, encoding="utf-8", newline="")

        def described(name: str, sentences: Sequence[Sequence[int]]) -> dict[str, Any]:
            half = max(1, len(sentences) // 2)
            shards = []
            for number, part in enumerate(p for p in (sentences[:half], sentences[half:]) if p):
                stem = f"{name}.{number:05d}"
                tokens = np.concatenate([[*ids, EOS] for ids in part]).astype(np.uint16)
                starts = np.cumsum([0, *(len(ids) + 1 for ids in part[:-1])]).astype(np.int64)
                np.save(folder / f"{stem}.npy", tokens)
                np.save(folder / f"{stem}.idx.npy", starts)
                files = {"file": f"{stem}.npy", "index": f"{stem}.idx.npy"}
                hashes = {
                    "sha256": _sha256(folder / f"{stem}.npy"),
                    "index_sha256": _sha256(folder / f"{stem}.idx.npy"),
                }
                shards.append({**files, **hashes, "tokens": len(tokens), "sentences": len(part)})
            return {
                "sentences": len(sentences),
                "tokens": sum(shard["tokens"] for shard in shards),
                "unknown": sum(list(ids).count(3) for ids in sentences),
                "words": sum(map(len, sentences)),
                "characters": 5 * sum(map(len, sentences)),
                "shards": shards,
                "inputs": [],
                **(counts or {}),
            }

        def ordered(name: str, sides: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
            texts = [open_sentences(folder, side["shards"]) for _, side in sorted(sides.items())]
            text = texts[0] if len(texts) == 1 else Pairs((*sorted(sides),), (texts[0], texts[1]))  # type: ignore[arg-type]
            return write_length_order(folder, name, text)

        made: dict[str, Any] = {split: {} for split in splits}
        for split, texts in splits.items():
            for language, sentences in texts.items():
                entry = described(f"{split}.{language}", sentences)
                made[split][language] = {**entry, "bylength": ordered(f"{split}.{language}", {language: entry})}
        made_pairs: dict[str, Any] = {split: {} for split in pairs or {}}
        for split, per_pair in (pairs or {}).items():
            for pair, texts in per_pair.items():
                sides = {code: described(f"{split}.{pair}.{code}", lines) for code, lines in texts.items()}
                order = ordered(f"{split}.{pair}", sides)
                n_pairs = next(iter(sides.values()))["sentences"]
                made_pairs[split][pair] = {"sentences": n_pairs, "sides": sides, "bylength": order}
        manifest = {
            "format": "xlm_train.corpus",
            "version": 1,
            "languages": dict(languages or {"de": 0, "en": 1}),
            "dtype": "uint16",
            "vocabulary": {
                "file": "vocab",
                "sha256": _sha256(folder / "vocab"),
                "entries": 14 + len(vocab.splitlines()),
            },
            "codes": {"file": "codes", "sha256": _sha256(folder / "codes"), "merges": len(codes.splitlines())},
            "splits": made,
            "pairs": made_pairs,
            "text": {"lowercase": False, "remove_accents": False},
            "settings": {},
            "tools": {},
            "lineage": hashlib.sha256(json.dumps([made, made_pairs], sort_keys=True).encode()).hexdigest(),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def make_checkpoint() -> CheckpointMaker:
    """make(file, model, vocab text, codes text, bptt, languages) -> file: a checkpoint for inference."""

    def make(
        file: Path, model: Any, vocab: str, codes: str, bptt: int, languages: Mapping[str, int] | None = None
    ) -> Path:
        from xlm_train.runtime import checkpoint_file

        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint_file.save(
            file,
            {
                "shape": model.shape.to_dict(),
                "model": model.state_dict(),
                "optimizer": None,
                "progress": {"step": 200, "updates": 200},
                "text": {
                    "languages": dict(languages or {"de": 0, "en": 1}),
                    "vocab": vocab,
                    "codes": codes,
                    "lowercase": False,
                    "remove_accents": False,
                },
                "lineage": {"corpus": None, "parents": []},
                "metrics": {},
                "config": {"data": {"bptt": bptt}},
            },
        )
        return file

    return make


@pytest.fixture(scope="session")
def golden_text(shared: Path) -> tuple[str, str]:
    """The goldens' vocabulary and codes, as text."""
    folder = shared / "goldens" / "bpe"
    return (folder / "vocab").read_bytes().decode(), (folder / "codes").read_bytes().decode()


@pytest.fixture(scope="session")
def golden_ids(shared: Path, golden_text: tuple[str, str]) -> Callable[[str], list[list[int]]]:
    """read(name) -> ids of each sentence of the original's BPE text `name`, by a plain dictionary."""
    words = {line.split(" ")[0]: number for number, line in enumerate(golden_text[0].splitlines(), start=14)}

    def read(name: str) -> list[list[int]]:
        return [[words.get(word, 3) for word in line.split()] for line in golden_pieces(shared, name)]

    return read


@pytest.fixture(scope="session")
def golden_corpus(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: CorpusMaker,
    golden_text: tuple[str, str],
    golden_ids: Callable[[str], list[list[int]]],
) -> Path:
    """The corpus of goldens/train: its train and validation text, and its test set."""
    names = {"train": "train", "valid": "valid", "test": "novels"}
    splits = {split: {lang: golden_ids(f"{name}.{lang}") for lang in ("de", "en")} for split, name in names.items()}
    return make_corpus(tmp_path_factory.mktemp("golden") / "corpus", *golden_text, splits)


@pytest.fixture(scope="session")
def golden_state(shared: Path) -> Callable[[str], dict[str, Any]]:
    """load(moment) -> the original's state dict at the `init` or `final` moment of goldens/train, tied weight once."""
    import torch

    files = {"init": "model/best-valid_clm_ppl.pth", "final": "train/checkpoint.pth"}

    def load(moment: str) -> dict[str, Any]:
        state = torch.load(shared / "goldens" / files[moment], weights_only=False)["model"]
        return {name: value for name, value in state.items() if name != "pred_layer.proj.weight"}

    return load


@pytest.fixture(scope="session")
def golden_model(golden_state: Callable[[str], dict[str, Any]]) -> Callable[[str], Any]:
    """load(moment) -> the model of goldens/train at its `init` or `final` state, in evaluation mode."""
    from xlm_train.interop.original.names import to_ours
    from xlm_train.model.transformer import XLM, ModelShape

    def load(moment: str) -> XLM:
        shape = ModelShape(n_words=6142, n_langs=2, dim=64, n_layers=2, n_heads=4, ffn_dim=256)
        model = XLM(shape)
        model.load_state_dict(to_ours(golden_state(moment), shape, moment))
        return model.eval()

    return load


@pytest.fixture(scope="session")
def golden_scores(shared: Path) -> Callable[[str], dict[str, float]]:
    """scores(moment) -> the original's own evaluation at `init` or `final`."""
    evaluations = json.loads((shared / "goldens" / "train" / "log.json").read_text())["evals"]
    return lambda moment: evaluations[{"init": 0, "final": -1}[moment]]


@pytest.fixture(scope="session")
def golden_checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory, golden_text: tuple[str, str]) -> Path:
    """The original's checkpoint of goldens/train, imported."""
    from xlm_train.interop.original.checkpoint import import_checkpoint
    from xlm_train.runtime import checkpoint_file

    file = tmp_path_factory.mktemp("golden") / "imported.pt"
    checkpoint_file.save(
        file, import_checkpoint(shared / "goldens" / "train" / "checkpoint.pth", golden_text[1]).content
    )
    return file


@pytest.fixture(scope="session")
def golden_seq2seq(shared: Path) -> Callable[..., Any]:
    """load(vocab_multiple=1) -> the translation model of goldens/mt at its start, in evaluation mode."""
    from xlm_train.interop.original.names import to_ours
    from xlm_train.model.seq2seq import Seq2Seq
    from xlm_train.model.transformer import ModelShape

    def load(vocab_multiple: int = 1) -> Seq2Seq:
        import torch

        shape = ModelShape(
            n_words=6142, dim=64, n_layers=2, n_heads=4, ffn_dim=256, dropout=0.0, attention_dropout=0.0,
            vocab_multiple=vocab_multiple,
        )  # fmt: skip
        model = Seq2Seq(shape)
        for name, side in (("encoder", model.encoder), ("decoder", model.decoder)):
            with np.load(shared / f"goldens/mt/init_{name}.npz") as arrays:
                tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
            side.load_state_dict(to_ours(tensors, shape, name, reads_source=name == "decoder"))
        return model.eval()

    return load
