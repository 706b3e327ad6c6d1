"""Tables of what came out of a run: losses and perplexities, evaluations, events, checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from xlm_train.report.curves import perplexity
from xlm_train.report.figures import MARKS
from xlm_train.report.html import Block, Cell, Folded, Paragraph, Table
from xlm_train.report.reading import Run, when
from xlm_train.runtime.files import as_number

MOST_ROWS = 100  # of a table; the figures show everything
MOST_OPEN = 20  # rows of a table that a reader need not open
NONE = "-"


def _listed(
    caption: str, head: Sequence[str], rows: Sequence[tuple[Run, Sequence[str | Cell]]], words: bool = False
) -> Table:
    """A table whose rows are of one run each; which one is said where there are several."""
    many = len({run.path for run, _ in rows}) > 1
    body = [[run.name, *cells] if many else cells for run, cells in rows]
    return Table(caption, ["run", *head] if many else head, body, words)


def digits(value: float | None, form: str = ",.4g") -> str:
    """A figure in the cell of a table, or a dash."""
    return NONE if value is None else f"{value:{form}}"


def figure_of(values: dict[str, Any], key: str) -> float | None:
    """A figure from a JSON file, or None where it is none."""
    return as_number(values.get(key))


def by_language(runs: Sequence[Run]) -> list[Block]:
    """Per language: the last training loss, and validation at the end and at its best."""
    head = ["language", "train loss", "train ppl", "val loss", "val ppl", "val acc, %", "best val ppl", "its acc, %"]
    rows = []
    for run in runs:
        for lang in [*run.languages, None]:
            part = f"_{lang}" if lang else ""
            loss = run.last(f"train/loss{part}")
            cells = [lang or "all", digits(loss), NONE if loss is None or lang is None else digits(perplexity(loss))]
            cells += [digits(run.last(f"val/{name}{part}")) for name in ("loss", "ppl", "acc")]
            cells += [digits(run.at(f"val/{name}{part}", run.best_step)) for name in ("ppl", "acc")]
            rows.append((run, cells))
    if not any(run.columns for run in runs):
        return []
    caption = (
        "The last report of each, and the best validation, by default the one with the lowest mean over languages (of"
        " perplexities, as the original's)"
    )
    if masked := [run.name for run in runs if run.masked]:
        caption += (
            f". Of hidden words alone: {', '.join(masked)}; such perplexities compare with those of masked models only"
        )
    return [_listed(caption, head, rows)]


def translations(runs: Sequence[Run]) -> list[Block]:
    """Per direction: BLEU and chrF of validation at the end and at its best, and what no model should stay below."""
    head = ["direction", "BLEU", "best validation's", "best constant sentence's", "copied source's"]
    head += ["chrF", "best constant sentence's", "copied source's"]
    rows = []
    for run in runs:
        for name in run.directions:
            kinds = ("bleu", "constant", "copied", "chrf", "constant-chrf", "copied-chrf")
            bleu, *others = (digits(run.last(f"val/{kind}_{name}"), ".2f") for kind in kinds)
            best = digits(run.at(f"val/bleu_{name}", run.best_step), ".2f")
            rows.append((run, [name, bleu, best, *others]))
    caption = (
        "Translation of the validation pairs. BLEU is of tokenised text, as the original's and the paper's, chrF of running"
        " text; beside them those of the best single sentence for everything, and of the source as it is"
    )
    return [_listed(caption, head, rows)] if rows else []


def without_a_model(runs: Sequence[Run]) -> str:
    """What the BLEU of validations is to be compared with; empty where nothing is translated."""
    found = {
        name: f"{name} {digits(run.last(f'val/constant_{name}'), '.2f')} and {digits(run.last(f'val/copied_{name}'), '.2f')}"
        for run in runs
        for name in run.directions
    }
    return f"BLEU of the best constant sentence and of the copied source: {', '.join(found.values())}" if found else ""


def samples(runs: Sequence[Run]) -> list[Block]:
    """The translations that the first, a middle and the last validation showed; texts that xlm-generate continued."""
    blocks: list[Block] = []
    head = ["direction", "source", "translation", "reference"]
    for run in runs:
        for place in sorted({0, len(run.samples) // 2, len(run.samples) - 1} & {*range(len(run.samples))}):
            step, shown = run.samples[place]
            caption = f"{run.name}, step {step:,}" if len(runs) > 1 else f"Step {step:,}"
            rows = [[str(sample.get(key, NONE)) for key in head] for sample in shown]
            blocks += [Table(caption, head, rows, words=True, sentences=True)] if rows else []
    head = ["language", "prompt", "text"]
    rows_of = [(run, [str(one.get(key, NONE)) for key in head]) for run in runs for one in run.generated[:MOST_OPEN]]
    return [*blocks, _listed("Texts continued by xlm-generate", head, rows_of, words=True)] if rows_of else blocks


def evaluations(runs: Sequence[Run]) -> list[Block]:
    """Per language: what `xlm-eval` has measured of the run's checkpoints."""
    keys = {"perplexity": "perplexity", "accuracy": "accuracy, %", "bits_per_character": "bits per character"}
    baselines = {f"{kind}_perplexity": f"{kind}'s perplexity" for kind in ("unigram", "bigram")}
    measured = [scores for run in runs for result in run.evaluations for scores in result.get("languages", {}).values()]
    keys |= {key: title for key, title in baselines.items() if any(isinstance(s, dict) and key in s for s in measured)}
    rows = []
    for run in runs:
        for result in run.evaluations:
            checkpoint = result.get("checkpoint")
            step = checkpoint.get("step") if isinstance(checkpoint, dict) else None
            for lang, scores in [*result.get("languages", {}).items(), ("mean", result.get("mean"))]:
                if isinstance(scores, dict):
                    of_step = f"{step:,}" if isinstance(step, int) else NONE
                    figures = [digits(figure_of(scores, key)) for key in keys]
                    rows.append((run, [str(result.get("split", "text")), of_step, str(lang), *figures]))
    head = ["split", "checkpoint's step", "language", *keys.values()]
    found: list[Block] = [_listed("Results of xlm-eval found beside the run", head, rows)] if rows else []
    return [*found, *_evaluated_translations(runs)]


def _evaluated_translations(runs: Sequence[Run]) -> list[Block]:
    rows = []
    for run in runs:
        for result in run.evaluations:
            for name, scores in result.get("directions", {}).items():
                for kind, title in (("tokenised_bleu", "BLEU, tokenised"), ("bleu", "sacrebleu"), ("chrf", "chrF")):
                    if isinstance(score := scores.get(kind) if isinstance(scores, dict) else None, dict):
                        values = [
                            digits(figure_of(score, key), ".2f") for key in ("value", "interval", "constant", "copied")
                        ]
                        rows.append((run, [str(result.get("split", "text")), str(name), title, *values]))
    head = ["split", "direction", "score", "value", "+- (95 %)", "best constant sentence", "copied source"]
    return [_listed("Translations scored by xlm-eval", head, rows)] if rows else []


def validations(runs: Sequence[Run]) -> list[Block]:
    """Every validation of a run, or the mean perplexities of several by step."""
    measured = [run for run in runs if "val/ppl" in run.columns]
    if not measured:
        return []
    if len(runs) == 1:
        run = runs[0]
        steps = list(run.columns["val/ppl"].steps)
        same = ("val/constant", "val/copied")  # at every validation: in the caption
        shown = [key for key in run.columns if key.startswith("val/") and not key.startswith(same)]
        names = sorted(shown, key=lambda key: (key.split("_")[0], key))
        head = ["step", *(name.removeprefix("val/") for name in names)]
    else:
        steps = sorted({step for run in measured for step in run.columns["val/ppl"].steps})
        names, head = ["val/ppl"], ["step", *(run.name for run in measured)]
    best = {id(run): run.best_step for run in measured}
    kept = thinned(steps, MOST_ROWS, keep=[step for step in best.values() if step is not None])
    rows = []
    for step in kept:
        cells: list[str | Cell] = [f"{step:,}"]
        for run in measured:
            for name in names:
                value = run.at(name, step)
                top = name == (run.monitor if len(runs) == 1 else "val/ppl") and step == best[id(run)]
                cells.append(Cell(f"{digits(value)} (best)", "good") if top else digits(value))
        rows.append(cells)
    caption = without_a_model(runs) if len(runs) == 1 else "Mean perplexity over the languages"
    if len(kept) < len(steps):
        caption = f"{caption} {len(kept)} of {len(steps):,} validations; the others are in metrics.jsonl".strip()
    table = Table(caption, head, rows)
    return [table] if len(rows) <= MOST_OPEN else [Folded(f"{len(steps):,} validations", table)]


def thinned(steps: Sequence[int], most: int, keep: Sequence[int]) -> list[int]:
    """Leave out steps of a long list.

    Args:
        steps: Increasing.
        most: How many stay, at even distances, the first and the last among them.
        keep: Those that stay besides.

    Returns:
        The steps that stay, increasing.
    """
    if len(steps) <= most:
        return list(steps)
    chosen = {steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)}
    return sorted(chosen | set(keep))


def events(runs: Sequence[Run]) -> list[Block]:
    """Counts of everything that was recorded, and the starts and incidents one by one."""
    rows, left_out, counts = [], 0, []
    for run in runs:
        listed = [event for event in run.events if event["event"] not in ("checkpoint", "skip")]
        left_out += max(0, len(listed) - MOST_ROWS)
        for event in listed[-MOST_ROWS:]:
            details = {key: value for key, value in event.items() if key not in ("time", "step", "event")}
            seconds = figure_of(event, "time")
            moment = NONE if seconds is None else when(seconds)
            rows.append((run, [f"{event['step']:,}", moment, event["event"].replace("_", " "), _details(details)]))
        kinds = Counter(event["event"] for event in run.events if event["event"] not in ("start", "finished"))
        if kinds:
            counts.append(f"{run.name}: " + ", ".join(f"{MARKS.get(kind, kind)} {n:,}" for kind, n in kinds.items()))
    if not rows:
        return [Paragraph("No events were recorded: restarts cannot be marked.")]
    blocks: list[Block] = [Paragraph(f"Counted: {'; '.join(counts)}.")] if counts else []
    if left_out:
        blocks.append(Paragraph(f"{left_out:,} earlier events are left out here; events.jsonl has them."))
    return [*blocks, _listed("", ["step", "time", "what", "details"], rows, words=True)]


def _details(known: dict[str, Any]) -> str:
    words = [
        f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else _said(value)}"
        for key, value in known.items()
        if value not in (None, [], "")
    ]
    return "; ".join(words)[:600]


def _said(value: Any) -> str:
    return rounded(value, 3) if isinstance(value, float) else str(value)


def rounded(value: float, digits: int) -> str:
    """A number to so many digits, large ones written out: 120, not 1.2e+02."""
    written = f"{value:.{digits}g}"
    return f"{float(written):,.0f}" if "e+" in written and value < 1e9 else f"{float(written):,.{digits}g}"


def checkpoints(runs: Sequence[Run]) -> list[Block]:
    """The files of the checkpoint folders."""
    rows: list[tuple[Run, list[str | Cell]]] = []
    for run in runs:
        for file in run.checkpoints:
            mark = Cell("best", "good") if file.best else Cell("damaged", "bad") if file.damaged else ""
            size = f"{file.size / 1e6:,.1f}"
            rows.append((run, [file.name, f"{file.step:,}", size, when(file.time), mark]))
    if not rows:
        return [Paragraph("None is there.")]
    return [_listed("", ["file", "step", "size, MB", "written", "mark"], rows)]
