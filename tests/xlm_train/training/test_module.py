"""The step: accumulation, noise, clipping, skipped updates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from xlm_train.data.datamodule import SlotBatch, StepBatch
from xlm_train.data.noise import seed_noise
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.objectives.clm import CausalLM, Windows
from xlm_train.training.anomaly import AnomalyDetector, TrainingStopped
from xlm_train.training.loss_buffer import LossBuffer, StepLosses
from xlm_train.training.module import LanguageModel
from xlm_train.training.precision import Autocast, LossScale
from xlm_train.training.state import TrainState

SHAPE = ModelShape(
    n_words=50, dim=16, n_layers=2, n_heads=2, ffn_dim=32, max_positions=16, dropout=0.0, attention_dropout=0.0
)

OBJECTIVE = CausalLM(None)  # type: ignore[arg-type]  # its batches are made here


def tokens(seed: int, streams: int = 3) -> Tensor:
    return torch.randint(14, 50, (streams, 9), generator=torch.Generator().manual_seed(seed))


def steps(count: int, slots: int) -> list[StepBatch]:
    return [
        StepBatch(t, tuple(SlotBatch(s, s % 2, Windows(tokens(100 * t + s), s % 2)) for s in range(slots)))
        for t in range(count)
    ]


def module(
    slots: int, shape: ModelShape = SHAPE, clip_norm: float = 1e9, lr: float = 0.1, **options: object
) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        XLM(shape),
        OBJECTIVE,
        lambda p: torch.optim.SGD(p, lr=lr),
        lambda k: lr,
        stop=1000,
        slots=slots,
        clip_norm=clip_norm,
        seed=5,
        **options,  # type: ignore[arg-type]
    )


def fit(model: LanguageModel, batches: list[StepBatch], *callbacks: pl.Callback, plugins: object = None) -> None:
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        plugins=plugins,  # type: ignore[arg-type]
    ).fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]


def test_an_update_is_the_mean_over_all_tokens_of_all_slots() -> None:
    batches = steps(1, slots=4)
    ours = module(slots=4)
    fit(ours, batches)

    wanted = module(slots=4)
    losses = [
        wanted.model.loss(wanted.model(s.inputs.tokens_BT[:, :-1], s.inputs.language), s.inputs.tokens_BT[:, 1:])
        for s in batches[0].slots
    ]
    (sum(losses) / 4).backward()  # type: ignore[union-attr]
    for name, parameter in wanted.model.named_parameters():
        found = dict(ours.model.named_parameters())[name]
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter - 0.1 * parameter.grad, rtol=1e-6, atol=1e-7)


def test_a_slot_counts_by_its_weight_and_its_loss_is_told_without() -> None:
    def moved(*weights: float) -> tuple[Tensor, list[float]]:
        (batch,) = steps(1, slots=2)
        slots = tuple(replace(slot, weight=weight) for slot, weight in zip(batch.slots, weights, strict=True))
        model = module(slots=2)
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        fit(model, [StepBatch(0, slots)])
        model.reduce_losses()
        after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        return after - before, [one.loss for one in model.state.losses.slots_of(0)]

    plain, losses = moved(1.0, 1.0)
    quarter, same = moved(0.25, 0.25)
    torch.testing.assert_close(quarter, 0.25 * plain, rtol=1e-4, atol=1e-7)
    first, _ = moved(1.0, 0.0)
    second, _ = moved(0.0, 0.5)
    torch.testing.assert_close(first + 2 * second, plain, rtol=1e-4, atol=1e-7)
    assert same == losses
    assert first.abs().max() > 1e-3


def test_the_first_token_of_a_window_is_never_a_target() -> None:
    model = module(slots=1)
    batch = tokens(0)
    other = batch.clone()
    hidden = model.model(batch[:, :-1], 0)
    assert OBJECTIVE.loss(model.model, Windows(batch, 0)).item() == model.model.loss(hidden, batch[:, 1:]).item()
    other[:, -1] = 20  # the last token is a target, and only that: it is never read
    assert torch.equal(model.model(other[:, :-1], 0), hidden)


def test_noise_depends_on_step_and_slot_only() -> None:
    seed_noise(3, 10, 2)
    first = torch.rand(5)
    torch.rand(1000)
    seed_noise(3, 10, 2)
    assert torch.equal(torch.rand(5), first)
    for seed, step, slot in ((4, 10, 2), (3, 11, 2), (3, 10, 3), (3, 1, 102)):
        seed_noise(seed, step, slot)
        assert not torch.equal(torch.rand(5), first)


def test_what_ran_before_a_step_does_not_change_its_noise() -> None:
    shape = ModelShape(**{**SHAPE.to_dict(), "dropout": 0.3, "attention_dropout": 0.3})
    whole, half = module(2, shape), module(2, shape)
    fit(whole, steps(4, 2))
    fit(half, steps(2, 2))
    torch.rand(12345)
    fit(half, steps(4, 2)[2:])
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_clipped_to_the_norm() -> None:
    model = module(slots=1, clip_norm=0.01, lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, steps(1, 1))
    moved = torch.sqrt(sum((p - b).square().sum() for p, b in zip(model.parameters(), before, strict=True)))  # type: ignore[arg-type]
    model.reduce_losses()
    assert model.state.losses.take()[0].grad_norm > 0.01
    assert moved.item() == pytest.approx(0.01, rel=1e-3)


class Overflow(pl.Callback):
    """Makes the loss scale far too large before some steps, so that float16 gradients really overflow."""

    def __init__(self, *at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: pl.Trainer, module: LanguageModel, batch: StepBatch, *_: object) -> None:  # type: ignore[override]
        assert module.state.loss_scale is not None
        module.state.loss_scale.scale = 2.0**40 if batch.step in self.at else 2.0**16


def test_a_skipped_step_moves_neither_weights_nor_updates() -> None:
    asked: list[int] = []
    model = module(2, float16=True)
    model.schedule = lambda k: asked.append(k) or 0.1  # type: ignore[func-returns-value]
    weights: dict[int, list[Tensor]] = {}
    scales: dict[int, float] = {}

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: LanguageModel, *_: object) -> None:  # type: ignore[override]
            weights[module.state.step] = [p.detach().clone() for p in module.parameters()]
            scales[module.state.step] = module.state.loss_scale.scale  # type: ignore[union-attr]

    fit(model, steps(4, 2), Overflow(1), Watch(), plugins=[Autocast("16-mixed", "cpu")])
    assert model.state.step == 4
    assert model.state.updates == 3
    assert model.state.skipped == [1]
    assert asked == [0, 1, 1, 2, 3]  # the schedule did not move at the second; one more is asked for the step after
    assert scales[2] == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[2], weights[3], strict=True))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_too_many_skips_stop_the_run() -> None:
    model = module(1, float16=True)
    model.detector = AnomalyDetector(max_in_a_row=3)
    with pytest.raises(TrainingStopped, match="3 updates in a row"):
        fit(model, steps(9, 1), Overflow(*range(2, 9)), plugins=[Autocast("16-mixed", "cpu")])
    assert model.state.skipped == [2, 3, 4]


def test_loss_scale() -> None:
    scale = LossScale(scale=8.0, growth_interval=3)
    history = []
    for finite in (True, True, True, True, False, True, True, True):
        scale.update(finite)
        history.append(scale.scale)
    assert history == [8, 8, 16, 16, 8, 8, 8, 16]


def test_the_state_survives_a_checkpoint() -> None:
    state = TrainState(
        step=5, updates=4, skipped=[2], loss_scale=LossScale(4.0, 10, 3), best_metric=2.5, best_step=4, failures=1,
        validation={"val/ppl": 2.5}, losses=LossBuffer([StepLosses(4, {0: (1.0, 1), 1: (2.0, 1)}, 0.5)]),
    )  # fmt: skip
    again = TrainState(loss_scale=LossScale())
    again.restore(state.to_dict(), state.validation)
    assert again == state


def test_float16_is_really_float16() -> None:
    with Autocast("16-mixed", "cpu").forward_context():
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype == torch.float16
