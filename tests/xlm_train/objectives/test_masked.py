"""Masked language modelling against the original, and as a function of (seed, step, slot)."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from xlm_train.config.parts import objective_problems
from xlm_train.data.corpus import Corpus
from xlm_train.data.datamodule import CorpusDataModule, SlotBatch, StepBatch
from xlm_train.data.training_text import TrainingText
from xlm_train.evaluation.perplexity import Score, score_masked_windows
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.objectives.clm import CausalLM
from xlm_train.objectives.masked import MaskedBatch, MaskedLM
from xlm_train.objectives.mixture import Mixture
from xlm_train.runtime.errors import ConfigError
from xlm_train.text.vocabulary import MASK
from xlm_train.training.loss_buffer import mean
from xlm_train.training.module import LanguageModel
from xlm_train.training.optim import OriginalAdam


@pytest.fixture(scope="module")
def text(corpus_folder: Path) -> TrainingText:
    return TrainingText(Corpus(corpus_folder), bptt=32, slot_streams=4, seed=3)


def as_batch(x: Any, chosen: Any, targets: Any, langs: Any, lengths: Any, positions: Any = None) -> MaskedBatch:
    """The original's arrays (T, B) as a batch; its targets are in the order of (T, B)."""
    places, rows = np.nonzero(chosen)
    whole = torch.from_numpy(rows * len(x) + places)
    tensors = [torch.from_numpy(array.T.astype(np.int64)) for array in (x, langs)]
    return MaskedBatch(
        *tensors, whole, torch.from_numpy(targets.astype(np.int64)), torch.from_numpy(lengths.astype(np.int64)),
        None if positions is None else torch.from_numpy(positions.T.astype(np.int64)),
    )  # fmt: skip


@pytest.mark.parametrize("case", ["uniform", "alpha", "fp16"])
@pytest.mark.parametrize("ops", ["fast", "plain"])
def test_logits_and_loss_are_the_originals(
    case: str, ops: str, shared: Path, first_model: Callable[..., XLM], text: TrainingText
) -> None:
    golden, model = np.load(shared / "goldens/mt/mlm.npz"), first_model(ops)
    names = ("x", "pred_mask", "y", "langs", "lengths")
    batch = as_batch(*(golden[f"{case}.{name}"] for name in names))
    assert float(MaskedLM(text).loss(model, batch)) == pytest.approx(float(golden[f"{case}.loss"]), rel=1e-6)
    with torch.no_grad():
        hidden = model(batch.tokens_BT, batch.langs, batch.lengths_B, causal=False)
        logits = model.logits(hidden.flatten(0, 1)[batch.chosen_N])
    for found, wanted in (
        (hidden.transpose(0, 1), golden[f"{case}.hidden"]),
        (logits[:, ::8], golden[f"{case}.logits"]),
    ):
        assert np.abs(found[: len(wanted)].numpy() - wanted).max() < 1e-5


def test_the_loss_is_the_plain_cross_entropy_and_so_is_its_gradient(first_model: Callable[..., XLM]) -> None:
    ours, theirs = first_model("fast"), first_model("plain")
    tokens = torch.randint(14, 6142, (3, 17), generator=torch.Generator().manual_seed(0))
    chosen, lengths = torch.tensor([4, 9, 20, 40]), torch.tensor([17, 9, 12])
    targets = tokens.flatten()[chosen]
    seen = tokens.clone()
    seen.view(-1)[chosen] = MASK
    loss = ours.masked_loss(seen, 1, chosen, targets, lengths)
    logits = theirs.logits(theirs(seen, 1, lengths, causal=False).flatten(0, 1))[chosen]
    wanted = F.cross_entropy(logits, targets)
    loss.backward()
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=2e-7), name  # type: ignore[arg-type]


class Recorder(pl.Callback):
    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: LanguageModel, *_: object) -> None:  # type: ignore[override]
        module.reduce_losses()
        (row,) = module.state.losses.take()
        self.rows.append((mean([row]), row.grad_norm))


def test_30_updates_of_mlm_and_tlm(
    shared: Path, first_model: Callable[..., XLM], text: TrainingText, tmp_path: Path
) -> None:
    steps = json.loads((shared / "goldens/mt/mlm_train_log.json").read_text())
    golden = np.load(shared / "goldens/mt/mlm_train_batches.npz")
    assert sum(step["lang2"] is not None for step in steps) == 10
    batches = [
        as_batch(
            *(golden[f"{t}.{name}"] for name in ("src", "pred_mask", "y", "src_langs", "src_len")),
            golden[f"{t}.positions"] if step["lang2"] else None,
        )
        for t, step in enumerate(steps)
    ]
    module = LanguageModel(
        first_model(),
        MaskedLM(text),
        make_optimizer=lambda p: OriginalAdam(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
        schedule=lambda k: 1e-3,
        stop=len(steps),
        slots=1,
        clip_norm=5.0,
        seed=0,
    )
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[recorder], default_root_dir=tmp_path,
    )  # fmt: skip
    data = [StepBatch(t, (SlotBatch(0, 0, batch),)) for t, batch in enumerate(batches)]
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    losses, norms = zip(*recorder.rows, strict=True)
    assert losses == pytest.approx([step["weighted_loss"] for step in steps], rel=1e-5)
    assert norms == pytest.approx([step["grad_norm"] for step in steps], rel=1e-3)


def test_evaluation_is_the_originals(
    shared: Path, tmp_path: Path, make_corpus: Callable[..., Path], golden_text: tuple[str, str],
    first_model: Callable[..., XLM],
) -> None:  # fmt: skip
    """Perplexities of whole validation splits; the windows of any two processes add up to them."""
    words = {line.split(" ")[0]: number for number, line in enumerate(golden_text[0].splitlines(), start=14)}
    sentences = {}
    for lang in ("de", "en"):
        lines = gzip.decompress((shared / f"goldens/mt/valid.de-en.{lang}.bpe.gz").read_bytes()).decode().splitlines()
        sentences[lang] = [[words.get(word, 3) for word in line.split()] for line in lines]
    corpus = Corpus(make_corpus(tmp_path / "corpus", *golden_text, {"valid": sentences}))
    golden, model = np.load(shared / "goldens/mt/mlm_eval.npz"), first_model()
    wanted = json.loads((shared / "goldens/mt/mlm_eval_scores.json").read_text())
    for lang, number in corpus.languages.items():
        stream = corpus.stream("valid", lang)
        sums = score_masked_windows(model, stream, 64, number)
        score = Score.from_sums(sums)
        assert score.predicted == golden[f"{lang}.n_words"]
        assert score.perplexity == pytest.approx(wanted[f"valid_{lang}_mlm_ppl"], rel=1e-6)
        assert score.accuracy == wanted[f"valid_{lang}_mlm_acc"]
        half = stream.n_windows(64) // 2
        shares = [range(half), range(half, stream.n_windows(64))]
        parts = [score_masked_windows(model, stream, 64, number, windows, 5) for windows in shares]
        assert torch.allclose(sum(parts), sums, rtol=1e-6)  # type: ignore[arg-type]


def module_of(text: TrainingText, objective: Any, rank: int = 0, processes: int = 1) -> CorpusDataModule:
    return CorpusDataModule(text.corpus, objective, 6, text.bptt, text.seed, rank, processes)


def batches_of(data: CorpusDataModule, step: int) -> list[SlotBatch]:
    loader = data.train_dataloader()
    return list(loader.dataset.read(step).slots)  # type: ignore[attr-defined]


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_masks_are_a_function_of_seed_step_and_slot(alpha: float, text: TrainingText) -> None:
    """Two processes mask what one does, whatever came before; the next pass and another seed mask otherwise."""
    alone = batches_of(module_of(text, MaskedLM(text, sample_alpha=alpha)), 5)
    parts = [module_of(text, MaskedLM(text, sample_alpha=alpha), rank, 2) for rank in (0, 1)]
    batches_of(parts[0], 3)
    together = [slot for part in parts for slot in batches_of(part, 5)]
    assert [slot.number for slot in together] == list(range(6))
    for a, b in zip(alone, together, strict=True):
        for name in ("tokens_BT", "chosen_N", "targets_N"):
            assert torch.equal(getattr(a.inputs, name), getattr(b.inputs, name))
    chosen = {tuple(slot.inputs.chosen_N.tolist()) for slot in alone}  # type: ignore[attr-defined]
    assert len(chosen) == 6  # each slot its own
    clean = batches_of(module_of(text, CausalLM(text)), 5)
    for masked, causal in zip(alone, clean, strict=True):
        batch, words = masked.inputs, causal.inputs.tokens_BT.flatten()  # type: ignore[attr-defined]
        assert torch.equal(batch.targets_N, words[batch.chosen_N])  # type: ignore[attr-defined]
        assert (batch.chosen_N % text.bptt > 0).all()  # type: ignore[attr-defined]
        rest = torch.ones(len(words), dtype=torch.bool)
        rest[batch.chosen_N] = False  # type: ignore[attr-defined]
        assert torch.equal(batch.tokens_BT.flatten()[rest], words[rest])  # type: ignore[attr-defined]


class Other(CausalLM):
    """A causal objective on streams of its own, scored as a masked one."""

    evaluation = "masked"

    @property
    def streams(self) -> Any:
        return [dataclasses.replace(stream, name=f"other-{stream.name}") for stream in super().streams]

    def batch(self, slot: Any, generator: Any) -> Any:
        return super().batch(dataclasses.replace(slot, stream=slot.stream.removeprefix("other-")), generator)


def test_a_mixture_divides_slots_by_quota(text: TrainingText) -> None:
    mixture = Mixture(text, {"mlm": MaskedLM, "other": Other}, {"mlm": 2, "other": 1})
    data = module_of(text, mixture)
    assert list(data.order.streams) == ["de", "en", "other-de", "other-en"]
    counts = data.order.slots_before(100)
    assert sum(counts.values()) == 600
    assert [counts[name] for name in counts] == pytest.approx([200, 200, 100, 100], abs=3)
    own = module_of(text, MaskedLM(text))
    model = XLM(ModelShape(n_words=text.n_words, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_positions=32))
    kinds = set()
    for slot in batches_of(data, 0):
        kinds.add(slot.inputs.part)  # type: ignore[attr-defined]
        assert torch.isfinite(mixture.loss(model, slot.inputs))  # type: ignore[arg-type]
    assert kinds == {"mlm", "other"}
    first = data.order.step(0)[0]
    assert np.array_equal(first.units, own.order.step(0)[0].units)  # a stream's order is its own
    assert [name for name, _ in mixture.texts(first)] == [f"window {unit} of pass 0" for unit in first.units]


def test_mistakes_of_a_mixture_are_told_together(text: TrainingText) -> None:
    def wrong(text: TrainingText) -> MaskedLM:
        return MaskedLM(text, mask_share=2)

    with pytest.raises(ConfigError) as error:
        Mixture(text, {"a": wrong, "b": MaskedLM, "c": CausalLM}, {"b": 0, "c": 1})
    assert error.value.problems == [
        "shares has b, c: one is needed for each of a, b, c",
        "shares.b=0: must be above 0, and finite",
        "parts.a.mask_share=2: must be above 0 and below 1",
        "parts are scored in different ways, causal and masked: leave one out",
    ]


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -1])
def test_shares_that_are_no_quota_are_refused(text: TrainingText, share: float) -> None:
    with pytest.raises(ConfigError, match=r"shares\.a=.*: must be above 0, and finite"):
        Mixture(text, {"a": MaskedLM}, {"a": share})


def test_a_mixture_in_a_config(text: TrainingText) -> None:
    """Its parts are checked like objectives of their own, and made from their entries."""

    def entry(**settings: Any) -> dict[str, Any]:
        part = {"_target_": "xlm_train.objectives.masked.MaskedLM", "_partial_": True, **settings}
        return {
            "_target_": "xlm_train.objectives.mixture.Mixture",
            "_partial_": True,
            "shares": {"mlm": 1},
            "parts": {"mlm": part},
        }

    assert objective_problems(entry(mask_shar=0.1, sample_alpha="x")) == [
        "objective.parts.mlm.mask_shar=0.1: xlm_train.objectives.masked.MaskedLM takes no 'mask_shar'"
        " (did you mean mask_share?)",
        "objective.parts.mlm.sample_alpha=x: must be a number",
    ]
    assert objective_problems(entry(replacements=["a", 1, 0])) == [
        "objective.parts.mlm.replacements=['a', 1, 0]: must be a list of numbers, as [1,2]"
    ]
    assert objective_problems({**entry(), "shares": {"mlm": "x"}}) == [
        "objective.shares={'mlm': 'x'}: must be a mapping of names to numbers or null"
    ]
    assert objective_problems(entry(mask_share=0.2)) == []
    made = instantiate(entry(mask_share=0.2), _convert_="all")(text)
    assert (made.evaluation, made.rows["de"].mask_share) == ("masked", 0.2)
    assert [stream.name for stream in made.streams] == ["de", "en"]
