"""The curves as one PNG, for places that show no HTML."""

from __future__ import annotations

from pathlib import Path

from xlm_train.report.html import PALETTE
from xlm_train.report.reading import Run
from xlm_train.runtime.files import atomic_write

QUIET = "#444444"


def plot_curves(run: Run, path: Path) -> None:
    """Loss per language with the validation points, learning rate, gradient norm and speed against steps; restarts dotted."""
    from matplotlib.figure import Figure

    from xlm_train.report.figures import reduce

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    loss = axes[0, 0]
    for number, lang in enumerate(run.languages):
        colour = PALETTE[number % len(PALETTE)][0]
        for name, style in (("train", {"alpha": 0.7}), ("val", {"marker": "o", "markersize": 4})):
            column = run.columns.get(f"{name}/loss_{lang}")
            if column:
                points = reduce(column.steps, column.values)
                label = f"{lang} {'training' if name == 'train' else 'validation'}"
                loss.plot(points.x, points.mean, color=colour, linewidth=1, label=label, **style)
                if name == "train":
                    loss.fill_between(points.x, points.low, points.high, color=colour, alpha=0.25, linewidth=0)
    loss.set(title="Loss", ylabel="nats per token")
    if loss.lines:
        loss.legend()
    for axis, name, title, unit in (
        (axes[0, 1], "optim/lr", "Learning rate", ""),
        (axes[1, 0], "optim/grad_norm", "Gradient norm before clipping", ""),
        (axes[1, 1], "speed/tokens_per_second", "Speed", "tokens/s, all processes"),
    ):
        column = run.columns.get(name)
        if column:
            points = reduce(column.steps, column.values)
            axis.plot(points.x, points.mean, color=QUIET, linewidth=1)
            axis.fill_between(points.x, points.low, points.high, color=QUIET, alpha=0.25, linewidth=0)
        axis.set(title=title, ylabel=unit)
        axis.set_ylim(bottom=0)
    for axis in axes.flat:
        for event in run.restarts:
            axis.axvline(event["step"], color=QUIET, linestyle=":", linewidth=1)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
