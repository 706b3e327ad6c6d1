"""What came out of `launch/table2.py`: scores of the rows, of systems without a model, and the paper's table beside them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from xlm_train.data.corpus import Corpus
from xlm_train.evaluation.bleu import tokenised_bleu, undo_bpe
from xlm_train.evaluation.parallel import ParallelText
from xlm_train.model.pretrained import open_checkpoint
from xlm_train.report.content import Section
from xlm_train.report.figures import Curve, Figure
from xlm_train.report.html import PALETTE, Paragraph, Table
from xlm_train.report.png import draw
from xlm_train.report.writing import as_html, as_markdown
from xlm_train.runtime.files import atomic_write, read_json, write_json
from xlm_train.text.reader import TextReader
from xlm_train.text.tokenise import Tokeniser
from xlm_train.training.loggers import read_metrics

# Encoder/decoder -> BLEU en-de, de-en on newstest2016, from memory: of these only 34.3 was found in a source (the paper's abstract)
PAPER = {
    "none/none": (6.7, 15.3), "none/clm": (19.2, 26.0), "none/mlm": (21.6, 28.6),
    "clm/none": (24.4, 30.3), "clm/clm": (22.7, 30.5), "clm/mlm": (24.3, 32.5),
    "mlm/none": (27.0, 33.2), "mlm/clm": (24.9, 32.9), "mlm/mlm": (26.4, 34.3),
}  # fmt: skip
# Rows whose difference answers a question: does pretraining help, which kind, on which side
COMPARED = (
    ("mlm/mlm", "none/none"), ("mlm/mlm", "clm/clm"), ("clm/clm", "none/none"),
    ("mlm/none", "none/none"), ("clm/none", "none/none"), ("none/mlm", "none/none"), ("none/clm", "none/none"),
    ("mlm/none", "none/mlm"), ("clm/none", "none/clm"),
    ("mlm/none", "clm/none"), ("mlm/clm", "clm/clm"), ("mlm/mlm", "clm/mlm"),
    ("mlm/mlm", "mlm/none"), ("clm/clm", "clm/none"),
)  # fmt: skip
RARE = 10  # a word that the monolingual training text has at most so often
EM_ROUNDS = 5  # of the dictionary
SHOWN = 4  # samples of a validation


def collect(corpus_path: Path, runs: Path, scores: Path, models: Mapping[str, Path]) -> dict[str, Any]:
    """Gather everything that the page shows.

    Args:
        corpus_path: The prepared corpus.
        runs: Where `clm` and `mlm` are.
        scores: Files of xlm-eval, called as the models.
        models: Run folders by "ENCODER/DECODER,SEED", and "supervised".
    """
    corpus = Corpus(corpus_path)
    directions = {
        "-".join(way): way
        for name in corpus.pair_names("test")
        for way in permutations(corpus.pairs("test", name).languages)
    }
    reader = TextReader(corpus.text, name=str(corpus.path))
    texts = {name: ParallelText(corpus, "test", way, reader, 10**6) for name, way in directions.items()}
    rare = {name: rare_words(corpus, way[1]) for name, way in directions.items()}
    found: dict[str, Any] = {"corpus": {"lineage": corpus.lineage, "test_pairs": next(iter(texts.values())).n_pairs}}
    found["rows"] = {
        name: row(run, scores / f"{name.replace('/', '_')}.json", corpus, texts, rare) for name, run in models.items()
    }
    found["without_a_model"] = {name: without_a_model(corpus, text) for name, text in texts.items()}
    starts = {kind: runs / kind / "checkpoints/best.pt" for kind in ("clm", "mlm")}
    found["retrieval"] = {
        kind: retrieval(file, next(iter(texts.values()))) for kind, file in starts.items() if file.is_file()
    }
    return found


def row(
    run: Path, score: Path, corpus: Corpus, texts: Mapping[str, ParallelText], rare: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """A run's course and, once it was scored, its figures on the test set."""
    lines = read_metrics(run / "metrics.jsonl")
    status = read_json(run / "status.json")["status"] if (run / "status.json").is_file() else "not started"
    steps, seconds = [0], [0.0]
    for line in lines:
        if "speed/seconds_per_step" in line:
            seconds.append(seconds[-1] + line["speed/seconds_per_step"] * (line["step"] - steps[-1]))
            steps.append(line["step"])
    curve = [
        [
            line["step"],
            round(float(np.interp(line["step"], steps, seconds)), 1),
            *(line[f"val/bleu_{name}"] for name in texts),
        ]
        for line in lines
        if "val/bleu" in line
    ]
    last = lines[-1]["step"] if lines else 0
    found: dict[str, Any] = {"status": status, "steps": last, "seconds": round(seconds[-1], 1)}
    found["curve"] = {"columns": ["step", "training seconds", *(f"BLEU {name}" for name in texts)], "points": curve}
    found["samples"] = samples(read_metrics(run / "samples.jsonl"))
    result = read_json(score) if score.is_file() else None
    if result is not None and result["corpus"]["lineage"] == corpus.lineage:
        found["checkpoint"] = {key: result["checkpoint"][key] for key in ("step", "sha256")}
        found["test"] = result["directions"]
        for name, text in texts.items():
            made = (score.parent / Path(result["files"][name]).name).read_text("utf-8").split("\n")[:-1]
            plain = Tokeniser(text.direction[1], lowercase=True).tokenise(made)
            references = [undo_bpe(line) for line in text.references]
            found["test"][name]["rare_word_recall"] = recall(plain, references, rare[name])
    return found


def samples(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Translations of the same sentences at the first validation, one in the middle and the last."""
    places = sorted({0, len(lines) // 2, len(lines) - 1}) if lines else []
    shown = [(lines[place]["step"], lines[place]["samples"]) for place in places]
    return [{"step": step, **sample} for step, made in shown for sample in made[:: max(1, len(made) // SHOWN)]]


def rare_words(corpus: Corpus, language: str) -> dict[str, int]:
    """Words of the monolingual training text that occur there at most RARE times."""
    words = TextReader(corpus.text, name="").vocabulary.words
    text = corpus.sentences("train", language)
    counts: Counter[str] = Counter()
    for sentence in text.read(np.arange(text.n)):
        counts.update(undo_bpe(" ".join(words[piece] for piece in sentence)).split())
    return {word: count for word, count in counts.items() if count <= RARE}


def recall(made: Sequence[str], references: Sequence[str], words: Mapping[str, int]) -> float | None:
    """Share, in percent, of the references' occurrences of these words that the translations have too; None: of none."""
    wanted = matched = 0
    for translation, reference in zip(made, references, strict=True):
        needed = Counter(word for word in reference.split() if word in words)
        wanted += needed.total()
        matched += (needed & Counter(translation.split())).total()
    return 100 * matched / wanted if wanted else None


def without_a_model(corpus: Corpus, text: ParallelText) -> dict[str, float]:
    """Tokenised BLEU of the best constant sentence, the copied source and, with aligned training pairs, a dictionary."""
    found = dict(text.baselines)
    source, target = text.direction
    name = "-".join(sorted(text.direction))
    if name in corpus.pair_names("train"):
        pairs = corpus.pairs("train", name)
        sides = [
            [undo_bpe(text.words([0, *ids, 0])).split() for ids in pair] for pair in pairs.read(np.arange(pairs.n))
        ]
        best = dictionary([pair[:: 1 if pairs.languages == (source, target) else -1] for pair in sides])
        sources, _ = text.read(text.numbers)
        lines = [undo_bpe(text.words(ids)).split() for ids in sources]
        made = [" ".join(best.get(word, word) for word in line) for line in lines]
        found["dictionary"] = tokenised_bleu(made, [undo_bpe(line) for line in text.references])
    return found


def dictionary(pairs: Iterable[Sequence[Sequence[str]]]) -> dict[str, str]:
    """The most likely translation of each word, by IBM model 1.

    Args:
        pairs: Words of source and target.

    Source: Brown et al. 1993.
    """
    pairs = [(source, target) for source, target in pairs]
    likely: Mapping[str, Mapping[str, float]] = defaultdict(lambda: defaultdict(lambda: 1.0))
    for _ in range(EM_ROUNDS):
        counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for source, target in pairs:
            for word in target:
                total = sum(likely[other][word] for other in source)
                for other in source:
                    counts[other][word] += likely[other][word] / total
        likely = {other: {word: n / sum(row.values()) for word, n in row.items()} for other, row in counts.items()}
    return {word: max(row, key=lambda other: row[other]) for word, row in likely.items()}


@torch.no_grad()
def retrieval(checkpoint: Path, text: ParallelText) -> dict[str, float]:
    """How often, in percent, a test sentence's own translation is nearest to it: cosine of the mean last hidden states."""
    trained = open_checkpoint(checkpoint, device="cpu")
    sides, limit = [], trained.model.shape.max_positions
    for sentences, language in zip(text.read(text.numbers), text.languages, strict=True):
        states = [
            trained.model(torch.tensor([ids[:limit]]), language, causal=trained.evaluation == "causal")[0].mean(dim=0)
            for ids in sentences
        ]
        sides.append(torch.nn.functional.normalize(torch.stack(states), dim=1))
    alike = sides[0] @ sides[1].T
    own = torch.arange(len(alike))
    source, target = text.direction
    ways = {f"{source}-{target}": alike, f"{target}-{source}": alike.T}
    found = {name: 100 * (matrix.argmax(dim=1) == own).double().mean().item() for name, matrix in ways.items()}
    return {"step": trained.step, **found}


def write_page(out: Path, found: Mapping[str, Any]) -> None:
    """Write table2.json, the page as table2.html and table2.md and, where there are curves, table2.png."""
    write_json(out / "table2.json", found)
    title, content = "Table 2 in miniature", sections(found)
    pages = {"table2.html": as_html(title, content), "table2.md": as_markdown(title, content, "table2.png")}
    for name, text in pages.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    if figures := curves(found):
        draw(figures, out / "table2.png")


def sections(found: Mapping[str, Any]) -> list[Section]:
    """What the page says."""
    names = sorted(found["without_a_model"])
    heads = ["encoder / decoder", "seed", "steps", "state", "best at"]
    heads += [f"{kind} {name}" for name in names for kind in ("BLEU", "sacrebleu", "chrF", "rare words %")]
    cells = [_cells(key, row, names) for key, row in found["rows"].items()]
    for system in ("constant", "copied", "dictionary"):
        values = {name: found["without_a_model"][name].get(system) for name in names}
        if any(value is not None for value in values.values()):
            cells.append(
                [system, "", "", "", "", *(cell for name in names for cell in (_number(values[name]), "", "", ""))]
            )
    intro = (
        f"{found['corpus']['test_pairs']:,} test pairs, corpus {found['corpus']['lineage'][:12]}. BLEU is of tokenised lower-cased text, as"
        " the original's; sacrebleu's BLEU and chrF are of lower-cased running text, with half the width of their 95 % interval."
        " What is tested is the checkpoint with the best validation, of the step shown. Rows that have not ended say so."
        f" Rare words: recall of those that the training text has at most {RARE} times. Constant: the one reference that scores"
        " best for every sentence; copied: the source; dictionary: word by word, from the aligned training pairs. A BLEU of -1:"
        " no translation has a word."
    )
    paper = [[key.replace("/", " / "), *map(str, reversed(values))] for key, values in PAPER.items()]
    recollected = Paragraph(
        "Lample & Conneau 2019: newstest2016, cased, 1,024 wide, 6 layers; recollected and unverified but for 34.3"
    )
    equal, compared, retrieved = equal_time(found, names), differences(found, names), []
    if found["retrieval"]:
        lines = [
            [kind, f"{values['step']:,}", *(_number(values[name]) for name in names)]
            for kind, values in found["retrieval"].items()
        ]
        retrieved.append(Table("", ["", "step", *names], lines))
    content = [
        Section("", [Paragraph(intro), Table("", heads, cells)]),
        Section("BLEU on the test by what encoder and decoder start from", grids(found, names)),
        Section("Differences between rows, BLEU on the test", [] if compared is None else [compared]),
        Section("BLEU on the validation set by update", curves(found)),
        Section("At equal training time, on the validation set", [] if equal is None else [equal]),
        Section("The paper's table", [recollected, Table("", ["encoder / decoder", "de-en", "en-de"], paper)]),
        Section("Sentence retrieval by the pretrained encoders' mean last state, % of the test sentences", retrieved),
        Section(
            "Translations of validation sentences",
            [shown(key, row["samples"]) for key, row in found["rows"].items() if row["samples"]],
        ),
    ]
    return [section for section in content if section.blocks]


def shown(key: str, samples: Sequence[Mapping[str, Any]]) -> Table:
    """Translations of a row."""
    titles = ["source", "translation", "reference"]
    rows = [[f"{one['step']:,}, {one['direction']}", *(str(one[title]) for title in titles)] for one in samples]
    return Table(key, ["step, direction", *titles], rows, words=True, sentences=True)


def _cells(key: str, row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    kind, _, seed = key.partition(",")
    best = f"{row['checkpoint']['step']:,}" if "checkpoint" in row else ""
    cells = [kind.replace("/", " / "), seed, f"{row['steps']:,}", row["status"], best]
    for name in names:
        test = row.get("test", {}).get(name)
        if test is None:
            cells += ["", "", "", ""]
            continue
        intervals = [f"{test[of]['value']:.1f} ± {test[of]['interval']:.1f}" for of in ("bleu", "chrf")]
        cells += [_number(test["tokenised_bleu"]["value"]), *intervals, _number(test["rare_word_recall"])]
    return cells


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def equal_time(found: Mapping[str, Any], names: Sequence[str]) -> Table | None:
    """The best validation of each row within the training time of the row that took the least; not of the supervised model."""
    rows = {
        key: row
        for key, row in found["rows"].items()
        if key != "supervised" and row["status"] in ("finished", "stopped") and row["curve"]["points"]
    }
    if not rows:
        return None
    limit = min(row["curve"]["points"][-1][1] for row in rows.values())
    cells = []
    for key, row in rows.items():
        columns = [row["curve"]["columns"].index(f"BLEU {name}") for name in names]
        points = [point for point in row["curve"]["points"] if point[1] <= limit]
        best = max(points, key=lambda point: sum(point[column] for column in columns), default=None)
        if best is not None:
            cells.append(
                [
                    key.replace("/", " / "),
                    f"{best[0]:,}",
                    f"{limit:,.0f}",
                    *(_number(best[column]) for column in columns),
                ]
            )
    return Table("", ["row", "steps", "seconds", *(f"BLEU {name}" for name in names)], cells)


def curves(found: Mapping[str, Any]) -> list[Figure]:
    """A figure a direction, a curve a row, the mean of its seeds. The ninth has the first one's colour, and dots.

    The supervised model has none: it would press the others together.
    """
    rows = seeds_by_row(found["rows"])
    figures = []
    for name in sorted(found["without_a_model"]):
        lines = []
        for number, kind in enumerate(PAPER):
            points = [
                {point[0]: point[row["curve"]["columns"].index(f"BLEU {name}")] for point in row["curve"]["points"]}
                for row in rows.get(kind, [])
                if row["curve"]["points"]
            ]
            steps = sorted(set.intersection(*map(set, points))) if points else []
            if steps:
                again, hue = divmod(number, len(PALETTE))
                label = kind if len(points) == 1 else f"{kind}, mean of {len(points)} seeds"
                values = [fmean(seed[step] for seed in points) for step in steps]
                lines.append(Curve(label, steps, values, hue, dots=again > 0))
        if lines:
            figures.append(Figure(name, "BLEU", lines, [], "steps"))
    return figures


def seeds_by_row(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of each row, from "ENCODER/DECODER,SEED"."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for key, row in rows.items():
        found[key.partition(",")[0]].append(row)
    return dict(found)


def bleu_by_row(found: Mapping[str, Any], name: str) -> dict[str, list[tuple[float, float, float]]]:
    """By row, of each seed that was scored: BLEU of tokenised text, and where sacrebleu's interval begins and ends."""
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for kind, seeds in seeds_by_row(found["rows"]).items():
        for test in (row["test"][name] for row in seeds if "test" in row):
            middle, half = test["bleu"]["value"], test["bleu"]["interval"]
            scores.setdefault(kind, []).append((test["tokenised_bleu"]["value"], middle - half, middle + half))
    return scores


def grids(found: Mapping[str, Any], names: Sequence[str]) -> list[Table]:
    """A table a direction, as the paper's: the mean of the seeds, and the lowest and highest where there are several."""
    tables, sides = [], list(dict.fromkeys(row.partition("/")[0] for row in PAPER))
    for name in names:
        scores = {row: [bleu for bleu, _, _ in seeds] for row, seeds in bleu_by_row(found, name).items()}
        if any(row in scores for row in PAPER):
            cells = [[encoder, *(_spread(scores.get(f"{encoder}/{side}", [])) for side in sides)] for encoder in sides]
            tables.append(Table(name, ["encoder", *(f"decoder {side}" for side in sides)], cells))
    return tables


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(map(_number, values))
    return f"{fmean(values):.1f} ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)"


def differences(found: Mapping[str, Any], names: Sequence[str]) -> Table | None:
    """Of the rows that are compared, the mean of all pairs of seeds, and how many pairs say the same.

    Beside it the paper's difference, of its one pair.
    """
    scores = {name: bleu_by_row(found, name) for name in names}
    lines = []
    for one, other in COMPARED:
        if not all(one in rows and other in rows for rows in scores.values()):
            continue
        line = [f"{one} - {other}"]
        for rows in scores.values():
            pairs = list(product(rows[one], rows[other]))
            mean = fmean(a[0] - b[0] for a, b in pairs)
            alike = sum((a[0] - b[0]) * mean > 0 for a, b in pairs)
            apart = sum(a[1] > b[2] or b[1] > a[2] for a, b in pairs)
            line += [f"{mean:+.1f}", f"{alike} of {len(pairs)}", f"{apart} of {len(pairs)}"]
        lines.append([*line, *(f"{PAPER[one][way] - PAPER[other][way]:+.1f}" for way in (1, 0))])
    heads = ["rows"]
    for name in names:
        heads += [name, "pairs of seeds with that sign", "with intervals apart"]
    return Table("", [*heads, "paper de-en", "paper en-de"], lines) if lines else None
