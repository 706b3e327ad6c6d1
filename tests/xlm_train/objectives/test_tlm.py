"""Translation language modelling against the original, and as a function of (seed, step, slot)."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.xlm_train.conftest import CorpusMaker
from tests.xlm_train.objectives.test_masked import as_batch
from xlm_train.data.concatenation import JoinedPairs
from xlm_train.data.corpus import Corpus
from xlm_train.data.datamodule import CorpusDataModule, SlotBatch, validation_texts
from xlm_train.data.masking import evaluation_mask
from xlm_train.data.training_text import TrainingText
from xlm_train.evaluation.pairs import batches_of, score_pairs
from xlm_train.evaluation.perplexity import Score
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.objectives.masked import MaskedBatch, MaskedLM
from xlm_train.objectives.mixture import Mixture
from xlm_train.objectives.tlm import TranslationLM
from xlm_train.runtime.errors import ConfigError, CorpusError
from xlm_train.text.vocabulary import EOS

DIRECTIONS = ["de-en", "en-de"]


@pytest.fixture(scope="module")
def corpus(
    shared: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: CorpusMaker,
    golden_text: tuple[str, str],
    golden_ids: Callable[[str], list[list[int]]],
) -> Corpus:
    """The pairs of goldens/mt's validation for both splits and its four pairs of TLM as a test; a little German and English."""
    words = {line.split(" ")[0]: number for number, line in enumerate(golden_text[0].splitlines(), start=14)}
    golden = np.load(shared / "goldens/mt/tlm.npz")
    valid, test = {}, {}
    for lang, n in (("de", 1), ("en", 2)):
        lines = gzip.decompress((shared / f"goldens/mt/valid.de-en.{lang}.bpe.gz").read_bytes()).decode().splitlines()
        valid[lang] = [[words.get(word, 3) for word in line.split()] for line in lines]
        columns = zip(golden[f"sent{n}"].T, golden[f"len{n}"], strict=True)
        test[lang] = [ids[1 : length - 1].tolist() for ids, length in columns]
    both = [number for number in range(len(valid["de"])) if valid["de"][number] and valid["en"][number]]
    valid = {lang: [sentences[number] for number in both] for lang, sentences in valid.items()}
    train = {lang: golden_ids(f"parvalid.{lang}") for lang in ("de", "en")}
    pairs = {split: {"de-en": sides} for split, sides in (("train", train), ("valid", valid), ("test", test))}
    single = {split: {lang: golden_ids(f"valid.{lang}")[:40] for lang in ("de", "en")} for split in ("train", "valid")}
    return Corpus(make_corpus(tmp_path_factory.mktemp("pairs") / "corpus", *golden_text, single, pairs=pairs))


@pytest.fixture(scope="module")
def text(corpus: Corpus) -> TrainingText:
    return TrainingText(corpus, bptt=32, slot_streams=4, tokens_per_slot=400, max_len=60, seed=3)


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("ops", ["fast", "plain"])
def test_rows_hidden_states_and_loss_are_the_originals(
    name: str, ops: str, shared: Path, corpus: Corpus, text: TrainingText, first_model: Callable[..., XLM]
) -> None:
    golden, prefix, model = np.load(shared / "goldens/mt/tlm.npz"), name.replace("-", "_"), first_model(ops)
    rows = JoinedPairs(corpus, "test", name, corpus.languages).read(np.arange(4)).within(512)
    parts = {"x": rows.tokens_BT, "positions": rows.positions_BT, "langs": rows.langs_BT}
    for part, found in parts.items():
        assert np.array_equal(found.T, golden[f"{prefix}.{part}"])
    arrays = (golden[f"{prefix}.{part}"] for part in ("x_masked", "pred_mask", "y"))
    batch = as_batch(*arrays, rows.langs_BT.T, rows.lengths_B, rows.positions_BT.T)
    assert np.array_equal(batch.targets_N, rows.tokens_BT.ravel()[batch.chosen_N])
    assert TranslationLM(text).loss(model, batch).item() == pytest.approx(float(golden[f"{prefix}.loss"]), rel=1e-6)
    with torch.no_grad():
        hidden = model(batch.tokens_BT, batch.langs, batch.lengths_B, causal=False, positions_BT=batch.positions_BT)
    assert np.abs(hidden.transpose(0, 1).numpy() - golden[f"{prefix}.hidden"]).max() < 1e-5


@pytest.mark.parametrize("name", DIRECTIONS)
def test_evaluation_is_the_originals(name: str, shared: Path, corpus: Corpus, first_model: Callable[..., XLM]) -> None:
    """Text and masks of its first batches, the perplexity of the split; shares of any three processes add up to it."""
    golden, prefix = np.load(shared / "goldens/mt/mlm_eval.npz"), name.replace("-", "_")
    pairs, state = JoinedPairs(corpus, "valid", name, corpus.languages), np.random.RandomState(0)
    batches = batches_of(pairs, 512, 16)
    assert len(batches) == golden[f"{prefix}.n_batches"]
    for number, batch in enumerate(batches[:3]):
        rows = pairs.read(batch)
        assert np.array_equal(rows.tokens_BT.T, golden[f"{prefix}.{number}.x_clean"])
        mask = evaluation_mask(rows.lengths_B.tolist(), rows.tokens_BT.shape[1], state)
        assert np.array_equal(mask, golden[f"{prefix}.{number}.pred_mask"])
    model = first_model()
    score = Score.from_sums(sums := score_pairs(model, pairs, batch_pairs=16))
    wanted = json.loads((shared / "goldens/mt/mlm_eval_scores.json").read_text())
    assert score.predicted == golden[f"{prefix}.n_words"]
    assert score.perplexity == pytest.approx(wanted[f"valid_{prefix}_mlm_ppl"], rel=1e-6)
    assert score.accuracy == wanted[f"valid_{prefix}_mlm_acc"]
    parts = [score_pairs(model, pairs, (rank, 3), batch_pairs=16) for rank in range(3)]
    assert torch.allclose(sum(parts), sums, rtol=1e-6)  # type: ignore[arg-type]


def tiny(text: TrainingText, positions: int) -> XLM:
    return XLM(
        ModelShape(n_words=text.n_words, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_positions=positions)
    ).eval()


def test_pairs_too_long_for_the_model(corpus: Corpus, text: TrainingText) -> None:
    """In training refused before anything starts; in validation left out, where the original would fail."""
    with pytest.raises(
        ConfigError, match=r"data\.max_len=60 .* model\.max_positions=50: data\.max_len=48 is the longest"
    ):
        _ = TranslationLM(dataclasses.replace(text, max_positions=50)).streams
    pairs = JoinedPairs(corpus, "valid", "de-en", corpus.languages)
    fitting = np.concatenate(batches_of(pairs, 20))
    assert 0 < len(fitting) < pairs.n
    assert pairs.lengths(fitting).max() <= 20
    assert torch.isfinite(score_pairs(tiny(text, 20), pairs)).all()
    short = dataclasses.replace(text, max_len=18, max_positions=20)
    data = CorpusDataModule(corpus, TranslationLM(short), 4, 32, 3)
    for slot in slots(data, 0):
        assert torch.isfinite(data.reader.loss(tiny(text, 20), slot.inputs))  # type: ignore[attr-defined]


def slots(data: CorpusDataModule, step: int) -> list[SlotBatch]:
    loader = data.train_dataloader()
    return list(loader.dataset.read(step).slots)  # type: ignore[attr-defined]


def clean_rows(batch: MaskedBatch) -> list[tuple[int, ...]]:
    """The rows of a batch before words were hidden in them."""
    whole = batch.tokens_BT.flatten().clone()
    whole[batch.chosen_N] = batch.targets_N
    rows = whole.view(batch.tokens_BT.shape)
    assert batch.lengths_B is not None
    return [tuple(row[:length].tolist()) for row, length in zip(rows, batch.lengths_B.tolist(), strict=True)]


def test_a_pass_reads_each_pair_once_on_any_number_of_processes(corpus: Corpus, text: TrainingText) -> None:
    pairs = corpus.pairs("train", "de-en")
    short = [(a.tolist(), b.tolist()) for a, b in pairs.read(np.arange(pairs.n)) if max(len(a), len(b)) <= 60]
    wanted = Counter((EOS, *a, EOS, EOS, *b, EOS) for a, b in short if a and b)
    for processes in (1, 2, 4, 7):
        ranks = [CorpusDataModule(corpus, TranslationLM(text), 7, 32, 3, rank, processes) for rank in range(processes)]
        (stream,) = ranks[0].order.streams.values()
        found: list[Counter[tuple[int, ...]]] = []
        step = 0
        while len(found) < 2 * stream.n_units:
            found += [Counter(clean_rows(slot.inputs)) for rank in ranks for slot in slots(rank, step)]  # type: ignore[arg-type]
            step += 1
        passes = [sum(found[n * stream.n_units : (n + 1) * stream.n_units], Counter()) for n in range(2)]
        assert passes == [wanted, wanted]
        assert found[: stream.n_units] != found[stream.n_units : 2 * stream.n_units]


def test_batches_in_float16_are_multiples_of_8(corpus: Corpus, text: TrainingText) -> None:
    half = dataclasses.replace(text, float16=True)
    for slot in slots(CorpusDataModule(corpus, TranslationLM(half), 30, 32, 3), 0):
        batch = slot.inputs
        assert isinstance(batch, MaskedBatch)
        if len(batch.tokens_BT) >= 8:
            assert [size % 8 for size in batch.tokens_BT.shape] == [0, 0]
        assert len(batch.chosen_N) % 8 == 0 or len(batch.chosen_N) < 8


def test_streams_and_what_a_run_is_scored_on(corpus: Corpus, text: TrainingText) -> None:
    def mixture(pairs: list[str]) -> Mixture:
        return Mixture(text, {"mlm": MaskedLM, "tlm": lambda text: TranslationLM(text, pairs)}, {"mlm": 2, "tlm": 1})

    one, both = TranslationLM(text), mixture(DIRECTIONS)
    assert [stream.name for stream in one.streams] == ["de-en"]
    assert 0 < one.streams[0].padding < 0.05
    data = CorpusDataModule(corpus, both, 6, 32, 3)
    assert list(data.order.slots_before(100).values()) == pytest.approx([200, 200, 100, 100], abs=3)
    assert list(data.validation_texts) == ["de", "en", "de-en", "en-de"]
    assert list(validation_texts(corpus, ["de-en"])) == ["de-en"]
    assert list(validation_texts(corpus, ["other"])) == ["de", "en"]
    (line,) = CorpusDataModule(corpus, one, 6, 32, 3).order.batches()
    assert line.startswith("de-en: ")
    slot = data.order.step(0)[-1]
    names = [name for name, _ in both.texts(slot)]
    assert names[0].startswith("pair ")
    model = tiny(text, 512)
    assert torch.isfinite(one.loss(model, one.empty_batch()))


def test_mistakes_are_named(corpus_folder: Path, text: TrainingText) -> None:
    with pytest.raises(CorpusError, match=r"no parallel text train\.de-en \(it has none\).*pairs\.de-en\.train="):
        TranslationLM(TrainingText(Corpus(corpus_folder)))
    with pytest.raises(CorpusError, match=r"no parallel text train\.de-fr \(it has train\.de-en"):
        TranslationLM(text, pairs=["de-fr"])
    with pytest.raises(ConfigError, match="pairs: english does not name two languages"):
        TranslationLM(text, pairs=["english"])
    with pytest.raises(ConfigError, match=r"data\.tokens_per_slot=50: must be more than the \d+ tokens"):
        _ = TranslationLM(dataclasses.replace(text, tokens_per_slot=50)).streams
