"""Supervised translation, denoising and back-translation: what they read, and the original's 100 updates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlm_train.data.corpus import Corpus
from xlm_train.data.noise import generator_of
from xlm_train.data.order import Order, Slot
from xlm_train.data.training_text import TrainingText
from xlm_train.interop.original.names import to_ours
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.transformer import ModelShape
from xlm_train.model.translation import translate
from xlm_train.objectives.back_translation import BackTranslation, Sentences, back_translated
from xlm_train.objectives.denoising import Denoising
from xlm_train.objectives.mixture import Mixture
from xlm_train.objectives.translation import Translation, translation_batch
from xlm_train.runtime.errors import ConfigError, CorpusError
from xlm_train.training.optim import OriginalAdam

EOS, PAD = 1, 2


@pytest.mark.slow
def test_100_updates_of_denoising_and_back_translation(complete: Path) -> None:
    """On the logged batches: losses within 1e-5, and every back-translation is the original's."""
    folder = complete / "goldens/mt"
    model = Seq2Seq(ModelShape(6142, dim=64, n_layers=2, n_heads=4, ffn_dim=256, dropout=0.0, attention_dropout=0.0))
    for name, side in (("encoder", model.encoder), ("decoder", model.decoder)):
        with np.load(folder / f"trained_{name}.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        side.load_state_dict(to_ours(tensors, model.shape, name, reads_source=name == "decoder"))
    parameters = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = OriginalAdam(parameters, lr=0.001, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    languages, compared = {"de": 0, "en": 1}, 0
    log = json.loads((folder / "aebt_log.json").read_text())
    with np.load(folder / "aebt_batches.npz") as arrays:
        for number, entry in enumerate(log):
            sources, targets = (
                [
                    row[:n].tolist()
                    for row, n in zip(arrays[f"{number}.{s}"].T, arrays[f"{number}.{s}_len"], strict=True)
                ]
                for s in ("src", "tgt")
            )
            first, second = languages[entry["lang1"]], languages[entry["lang2"]]
            if entry["step"] == "bt":
                batch = back_translated(model, Sentences(targets, first, second))
                lengths = batch.source_lengths_B.tolist()
                made = [row[:n].tolist() for row, n in zip(batch.source_BS, lengths, strict=True)]
                assert made == sources, number
                compared += len(made)
            else:
                batch = translation_batch(sources, first, targets, second)
            loss = batch.loss(model)
            assert loss.item() == pytest.approx(entry["loss"], rel=1e-5), number
            (loss * entry["lambda_"]).backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            assert norm.item() == pytest.approx(entry["grad_norm"], rel=1e-4), number
            for group in optimizer.param_groups:
                group["lr"] = entry["lr"]
            optimizer.step()
            optimizer.zero_grad()
    assert (len(log), compared) == (100, 997)


@pytest.fixture(scope="module")
def text(
    tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Path], golden_text: tuple[str, str]
) -> TrainingText:
    random = np.random.default_rng(0)

    def sentences(n: int, language: int) -> list[list[int]]:
        return [
            random.integers(14 + 20 * language, 34 + 20 * language, random.integers(1, 15)).tolist() for _ in range(n)
        ]

    mono = {"train": {"de": sentences(90, 0), "en": sentences(70, 1)}}
    pairs = {"train": {"de-en": {"de": sentences(80, 0), "en": sentences(80, 1)}}}
    folder = make_corpus(tmp_path_factory.mktemp("mt") / "corpus", *golden_text, mono, pairs=pairs)
    return TrainingText(Corpus(folder), tokens_per_slot=120, max_len=12, max_positions=32)


def slots_of(objective: Any, text: TrainingText, steps: int = 6) -> list[Slot]:
    order = Order(objective.streams, 4, text.seed)
    return [slot for step in range(steps) for slot in order.step(step, range(4))]


def rows(tokens: torch.Tensor) -> list[list[int]]:
    return [[word for word in row if word != PAD] for row in tokens.tolist()]


def test_directions_of_pairs(text: TrainingText) -> None:
    objective = Translation(text)
    assert [stream.name for stream in objective.streams] == ["mt-de-en", "mt-en-de"]
    for slot in slots_of(objective, text):
        batch = objective.batch(slot, generator_of(0, slot.step, slot.number))
        source, target = (0, 1) if slot.stream == "mt-de-en" else (1, 0)
        assert (batch.source_lang, batch.target_lang) == (source, target)
        pairs = text.corpus.pairs("train", "de-en").read(objective.numbers(slot))
        expected = [[[EOS, *side.tolist(), EOS] for side in pair] for pair in pairs]
        assert rows(batch.source_BS) == [pair[source] for pair in expected]
        assert rows(batch.target_BT) == [pair[target] for pair in expected]
        assert len(batch.chosen_N) == sum(len(pair[target]) - 1 for pair in expected)
        assert len(objective.texts(slot)) == 2 * len(pairs)


def test_noise_is_in_the_source_alone_and_a_function_of_the_slot(text: TrainingText) -> None:
    objective, clean = Denoising(text), Denoising(text, noise={"shuffle": 0, "drop": 0, "blank": 0})
    assert [stream.name for stream in objective.streams] == ["ae-de", "ae-en"]
    changed = 0
    for slot in slots_of(objective, text):
        batch, again = (objective.batch(slot, generator_of(0, slot.step, slot.number)) for _ in range(2))
        assert torch.equal(batch.source_BS, again.source_BS)
        plain = clean.batch(slot, generator_of(0, slot.step, slot.number))
        assert rows(plain.source_BS) == rows(plain.target_BT) == rows(batch.target_BT)
        assert batch.source_lang == batch.target_lang == text.languages[slot.stream[3:]]
        changed += rows(batch.source_BS) != rows(batch.target_BT)
    assert changed > 20


def small(dropout: float = 0.1) -> Seq2Seq:
    torch.manual_seed(1)
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 32, "max_positions": 32}
    model = Seq2Seq(ModelShape(60, **sizes, dropout=dropout, attention_dropout=dropout))
    model.decoder.output_bias.data[EOS] -= 2  # translations with words in them
    return model


def test_back_translations_are_made_by_the_weights_of_the_moment(text: TrainingText) -> None:
    objective, model = BackTranslation(text, ["en-de-en"]), small(0.0).train()
    slot = slots_of(objective, text)[0]
    batch = objective.batch(slot, generator_of(0, 0, 0))
    assert (batch.language, batch.through) == (1, 0)
    made = back_translated(model, batch)
    limit = int(1.3 * max(map(len, batch.sentences)) + 5)
    assert rows(made.source_BS) == translate(model, batch.sentences, 1, 0, limit)
    assert (made.source_lang, made.target_lang, rows(made.target_BT)) == (0, 1, batch.sentences)
    assert max(map(len, rows(made.source_BS))) > 3
    assert model.training
    loss = objective.loss(model, batch)
    assert loss == made.loss(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    assert rows(back_translated(model, batch).source_BS) != rows(made.source_BS)


@pytest.mark.parametrize("autocast", [False, True])
def test_every_parameter_gets_a_gradient(text: TrainingText, autocast: bool) -> None:
    """Under autocast too, where copies of the weights made while translating have no graph."""
    for objective in (Translation(text), Denoising(text), BackTranslation(text)):
        slot = slots_of(objective, text)[0]
        for batch in (objective.batch(slot, generator_of(0, 0, 0)), objective.empty_batch()):
            model = small()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = objective.loss(model, batch)
            loss.backward()
            assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_mixture_of_the_three(text: TrainingText) -> None:
    parts = {"ae": Denoising, "bt": BackTranslation, "mt": Translation}
    mixture = Mixture(text, parts, {"ae": 1, "bt": 2, "mt": 1})
    names = {stream.name: stream.share for stream in mixture.streams}
    assert set(names) == {"ae-de", "ae-en", "bt-de-en-de", "bt-en-de-en", "mt-de-en", "mt-en-de"}
    assert names["bt-de-en-de"] == 2 * names["ae-de"]
    for slot in slots_of(mixture, text):
        mixture.loss(small(), mixture.batch(slot, generator_of(0, slot.step, slot.number))).backward()


PARTS = {"ae": Denoising, "bt": BackTranslation}


def test_the_turns_are_those_of_the_original(text: TrainingText, shared: Path) -> None:
    """Of its 100 updates: the same steps in each iteration, denoising first, and the same weights; each draws its order."""
    golden = json.loads((shared / "goldens/mt/aebt_order.json").read_text())
    mixture = Mixture(text, PARTS, weights={"ae": golden["lambda_ae"]}, order="turns")
    order = Order(mixture.streams, 4, text.seed)
    ours, theirs = [], []
    for step, (iteration, kind, language, weight) in enumerate(golden["steps"]):
        (stream, found), *others = {(slot.stream, slot.weight) for slot in order.step(step)}
        assert not others
        assert found == pytest.approx(weight, rel=1e-12)
        ours.append((iteration, *stream.split("-")[:2]))
        theirs.append((iteration, kind, language))
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    assert sorted(ours) == sorted(theirs)
    assert ours != theirs
    assert order.slots_before(100) == {"ae-de": 80, "ae-en": 80, "bt-de-en-de": 120, "bt-en-de-en": 120}


def test_a_mixture_in_turns(text: TrainingText) -> None:
    mixture = Mixture(text, {**PARTS, "mt": Translation}, order="turns")
    assert {stream.turn for stream in mixture.streams} == {"ae", "bt", "mt"}
    assert mixture.directions == [("en", "de"), ("de", "en")]
    assert Mixture(text, {"ae": Denoising}, order="turns").directions == []
    assert mixture.evaluation == "translation"
    for slot in slots_of(mixture, text, 6)[::4]:
        assert slot.stream.startswith(mixture.batch(slot, generator_of(0, slot.step, slot.number)).part)


def test_by_quota_a_part_has_its_weight(text: TrainingText) -> None:
    mixture = Mixture(text, PARTS, {"ae": 1, "bt": 1}, {"ae": "0:1,4:0.5"})
    slots = slots_of(mixture, text)
    assert [slot.weight for slot in slots if slot.stream == "bt-de-en-de"] == [1.0] * 6
    assert [slot.weight for slot in slots if slot.stream == "ae-de"] == pytest.approx([1, 0.875, 0.75, 0.625, 0.5, 0.5])


def test_mistakes_of_weights_and_orders_are_told_together(text: TrainingText) -> None:
    def problems(**settings: Any) -> list[str]:
        with pytest.raises(ConfigError) as error:
            Mixture(text, PARTS, **settings)
        return error.value.problems

    assert problems(order="turn", weights={"mt": 1, "ae": "x"}, shares={"ae": 1, "bt": 1}) == [
        "weights.mt: there is no such part among ae, bt",
        "weights.ae=x: a weight is a number from 0, or points iteration:weight with rising iterations, the first 0, such as"
        " '0:1,100000:0.1,300000:0'",
        "order=turn: must be one of quota, turns",
    ]
    assert problems(order="turns", shares={"ae": 1, "bt": 1}) == [
        "shares: objectives that take turns have no shares: set objective.order=quota, or leave them out"
    ]
    assert problems(weights={"ae": "0:1,9:0"}) == [
        "weights.ae=0:1,9:0: becomes 0, and by quota its slots would be read for nothing: use a small weight, or"
        " objective.order=turns",
        "shares has none: one is needed for each of ae, bt",
    ]
    nothing = Mixture(text, PARTS, order="turns", weights={"ae": "0:1,9:0", "bt": "0:1,5:0"})
    with pytest.raises(ConfigError, match="weights: all are 0 from iteration 9 on: nothing is left to learn from"):
        Order(nothing.streams, 4, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda text: Translation(text, ["de-fr"]), "de-fr does not name 2 languages of the corpus, which has de, en"),
        (lambda text: Denoising(text, ["fr"]), "fr does not name 1 language of the corpus"),
        (lambda text: BackTranslation(text, ["de-en"]), "write it as de-en-de"),
        (lambda text: BackTranslation(text, ["de-de-en"]), "de-de-en does not come back to where it began"),
        (lambda text: Denoising(text, noise={"drop": 1}), r"^noise\.drop=1: must be in"),
    ],
)
def test_mistakes_are_told(text: TrainingText, make: Callable[[TrainingText], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(text)


def test_a_corpus_without_pairs_says_so(
    tmp_path: Path, make_corpus: Callable[..., Path], golden_text: tuple[str, str]
) -> None:
    folder = make_corpus(tmp_path / "corpus", *golden_text, {"train": {"de": [[20]], "en": [[20]]}})
    with pytest.raises(CorpusError, match="de-en"):
        Translation(TrainingText(Corpus(folder)), ["de-en"])
    with pytest.raises(
        CorpusError, match=r"has no parallel text train\.de-en \(it has none\); prepare it with it: xlm-prep"
    ):
        Translation(TrainingText(Corpus(folder)))
