"""The command xlm-prep, top to bottom: raw text -> tokens -> BPE -> vocabulary -> binarised corpus.

`prepare` shows the chain; each stage below it goes through the text piece by piece, leaves its results in the work
folder and finds them there after a restart.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep import learn_bpe, manifest, report, select, stages, statistics
from data_prep.assign import hold_out, leave_out
from data_prep.binarise import Binarised, binarise
from data_prep.distributed import workers_for
from data_prep.publish import finished_corpus, locked, publish
from data_prep.settings import Key, Settings, read_settings
from data_prep.text import UNITS, BpeFiles, Text, Texts
from data_prep.work import Work, Workers
from xlm_train.config.command import command
from xlm_train.runtime.console import Progress, log, waiting
from xlm_train.runtime.errors import EXIT_INTERRUPTED, UserError
from xlm_train.text.files import ReadStats
from xlm_train.text.lines import cut as cut_lines
from xlm_train.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from omegaconf import DictConfig


@command(
    "prep",
    description="Make a binarised corpus of raw text: tokenise, learn and apply joint BPE, binarise.\n"
    "Interrupted, the same command goes on from the last finished piece. docs/data.md explains inputs and settings.",
    examples=[
        "xlm-prep out=data/mine 'train.en=[a.txt,b.gz]' 'train.de=[c.txt]' bpe.n_codes=20000",
        "xlm-prep out=data/ende corpus=news_crawl_ende raw=/downloads workers=16",
        "xlm-prep out=data/again codes=codes_ende vocab=vocab_ende train.en=a.txt train.de=c.txt",
    ],
)
def main(config: DictConfig) -> int:
    """Prepare a corpus as the command line says."""
    try:
        prepare(read_settings(config))
    except KeyboardInterrupt:
        log("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED
    return 0


def prepare(settings: Settings) -> dict[str, Any]:
    """Make the corpus. What was in its folder before stays whole until the new one is.

    Returns:
        The manifest.

    Raises:
        UserError: The text cannot be read, or gives no such corpus.
    """
    tools = manifest.tools(settings)
    folder = settings.folder / ".work"
    with (
        locked(settings.folder),
        workers_for(settings.executor, settings.tasks, settings.workers, settings.slurm, folder) as workers,
    ):
        finished = finished_corpus(settings, tools)
        if finished is not None:
            log(f"{settings.folder} holds exactly this corpus already: nothing to do")
            return finished
        work = Work(folder, tools)
        texts = tokenise(settings, work, workers)
        hold_out(settings, work, texts)
        leave_out(settings, texts)
        codes = get_codes(settings, work, workers, texts)
        free = {key: text for key, text in texts.items() if key[0] == "train" or key[0] not in settings.limited}
        cut = cut_up("cut", work, workers, free, codes, None)
        bpe = get_vocabularies(settings, work, codes, cut)
        limited = {key: text for key, text in texts.items() if key[0] in settings.limited}
        cut |= cut_up("cut again", work, workers, limited, codes, bpe.limits)
        encoded = encode(work, workers, texts, cut, bpe)
        corpus, shards = binarise_all(settings, work, texts, encoded, bpe)
        result = manifest.describe(settings, tools, texts, encoded, corpus, bpe)
        files = bpe.files() | {"report.html": work.copy("report", report.page(result, corpus).encode())}
        publish(settings, result, shards, files)
    show(settings, result)
    return result


# ---- 1. tokenise


def tokenise(settings: Settings, work: Work, workers: Workers) -> Texts:
    """Read every source once, cut it into pieces, tokenise those that are not tokenised yet."""
    texts = {key: Text(*key) for key in settings.sources}
    sizes = [source.size for sources in settings.sources.values() for source in sources]
    workers.ahead(stages.tokenise_piece, functools.partial(jobs_to_tokenise, settings, work))
    total = None if None in sizes else sum(size for size in sizes if size)
    progress = Progress("tokenise", total, UNITS)

    def missing() -> Iterator[stages.TokeniseJob]:
        for job, done in pieces_to_tokenise(settings, work, texts):
            size = len(job.piece.data)
            if job.out.exists():
                progress.skip(done, size / 1e6)
            else:
                yield job
                progress.add(done, size / 1e6, job.piece.data.count(b"\n"))

    for _ in workers.map(stages.tokenise_piece, missing()):
        pass
    progress.end()
    for text in texts.values():
        if text.dropped_lines.long_lines and text.split in settings.parallel:
            raise UserError(
                f"{text.name}: line {text.dropped_lines.first_long_line} is longer than max_line_bytes="
                f"{settings.max_line_bytes}; parallel text cannot leave lines out: "
                f"raise max_line_bytes, or take {text.split} out of parallel"
            )
    for split in settings.parallel:
        lines = {text.name: sum(text.lines) for text in texts.values() if text.split == split}
        if len(set(lines.values())) > 1:
            raise UserError(
                f"parallel={split}: not line-aligned: "
                + ", ".join(f"{name} has {n:,} lines" for name, n in lines.items())
            )
    return texts


def pieces_to_tokenise(settings: Settings, work: Work, texts: Texts) -> Iterator[tuple[stages.TokeniseJob, int]]:
    """All pieces of all sources in order, as jobs, with the bytes of the source each took; fills `texts` on the way."""
    for (split, language), sources in settings.sources.items():
        text = texts[split, language]
        shaped_by = (language, settings.lowercase, settings.remove_accents, settings.decode_errors)
        for source in sources:
            stats = ReadStats()
            done = 0
            for piece in cut_lines(
                source.chunks(stats), settings.piece_bytes, settings.max_line_bytes, text.dropped_lines
            ):
                out = work.path("tokenised", hashlib.sha256(piece.data).hexdigest(), *shaped_by)
                text.add(out, piece.data.count(b"\n"), len(piece.data))
                yield stages.TokeniseJob(out, piece, source.name, *shaped_by), stats.done - done
                done = stats.done
            text.inputs.append({"path": source.name, "bytes": stats.done, "sha256": stats.sha256})


def jobs_to_tokenise(settings: Settings, work: Work) -> Iterator[stages.TokeniseJob]:
    """The same without anything to fill: for a task elsewhere."""
    for job, _ in pieces_to_tokenise(settings, work, {key: Text(*key) for key in settings.sources}):
        yield job


# ---- 2. codes and vocabularies


def get_codes(settings: Settings, work: Work, workers: Workers, texts: Texts) -> Path:
    """The file of BPE codes: the given one, or learned from a sample of the training text."""
    if settings.codes_file:
        return work.copy("codes", settings.codes_file.read_bytes())
    train = [texts["train", language] for language in settings.learning_order]
    sentences = {text.language: sum(map(text.n_kept, range(len(text.pieces)))) for text in train}
    shares = (
        select.sample_shares(sentences, settings.bpe.alpha, settings.bpe.sample_sentences)
        if settings.bpe.sample == "alpha"
        else None
    )
    counted: list[Path] = []

    def jobs() -> Iterator[Sized]:
        for text in train:
            first = 0
            for number in range(len(text.pieces)):
                sample = None if shares is None else (first, shares[text.language], settings.seed)
                counted.append(work.path("words", text.identity(number), sample))
                job = stages.WordsJob(counted[-1], text.selection(number), sample)
                yield Sized(job, text.bytes[number], text.lines[number])
                first += text.n_kept(number)

    run("words", stages.count_piece_words, jobs(), sum(sum(text.bytes) for text in train), workers)
    path = work.path("codes", [file.name for file in counted], settings.bpe.n_codes, settings.bpe.engine, suffix="")
    if not path.exists():
        counts = stages.total(counted)
        what = f"{settings.bpe.n_codes:,} codes from {counts.total():,} words, {len(counts):,} of them different"
        with waiting("learn", what):
            learn_bpe.learn(counts, settings.bpe.n_codes, settings.bpe.engine).write(path)
    return path


def cut_up(
    name: str, work: Work, workers: Workers, texts: Texts, codes: Path, limits: Mapping[str, Path] | None
) -> dict[Key, list[Path]]:
    """Cut text into BPE pieces.

    Args:
        name: Of the stage, for its progress.
        work: Where the work files are.
        workers: Do the jobs.
        texts: The text, by split and language.
        codes: File of the BPE codes.
        limits: Each language's own vocabulary, to undo merges whose result it lacks; None: no limit.

    Returns:
        The work files of pieces, for each text in its order.
    """
    made: dict[Key, list[Path]] = {key: [] for key in texts}

    def jobs() -> Iterator[Sized]:
        for key, text in texts.items():
            limit = limits[text.language] if limits else None
            for number in range(len(text.pieces)):
                out = work.path("pieces", text.identity(number), codes.name, limit.name if limit else None)
                made[key].append(out)
                job = stages.CutJob(out, text.selection(number), codes, limit)
                yield Sized(job, text.bytes[number], text.lines[number])

    run(name, stages.cut_piece, jobs(), sum(sum(text.bytes) for text in texts.values()), workers)
    return made


def get_vocabularies(settings: Settings, work: Work, codes: Path, cut: Mapping[Key, list[Path]]) -> BpeFiles:
    """The joint vocabulary and each language's own, beside the codes: the given ones, or of all training text."""
    counts = {
        language: stages.total(files)
        for (split, language), files in cut.items()
        if split == "train" and not (settings.vocab_file and settings.language_vocab_files)
    }
    own = {language: Vocabulary.from_counts(found).to_text().encode() for language, found in counts.items()}
    own |= {language: file.read_bytes() for language, file in settings.language_vocab_files.items()}
    limits = {language: work.copy(f"vocab.{language}", own[language]) for language in sorted(own)}
    if settings.vocab_file:
        joint = settings.vocab_file.read_bytes()
    else:
        joint = Vocabulary.from_counts(sum(counts.values(), Counter())).to_text().encode()
    return BpeFiles(codes, work.copy("vocab", joint), limits)


# ---- 3. ids


def encode(
    work: Work, workers: Workers, texts: Texts, cut: Mapping[Key, list[Path]], bpe: BpeFiles
) -> dict[Key, list[Path]]:
    """Every piece of every split as ids."""
    encoded: dict[Key, list[Path]] = {key: [] for key in texts}

    def jobs() -> Iterator[Sized]:
        for key, text in texts.items():
            for number, pieces in enumerate(cut[key]):
                out = work.path("ids", pieces.name, bpe.vocab.name)
                encoded[key].append(out)
                yield Sized(stages.EncodeJob(out, pieces, bpe.vocab), text.bytes[number], text.lines[number])

    run("encode", stages.encode_piece, jobs(), sum(sum(text.bytes) for text in texts.values()), workers)
    return encoded


def binarise_all(
    settings: Settings, work: Work, texts: Texts, encoded: dict[Key, list[Path]], bpe: BpeFiles
) -> tuple[dict[Key, Binarised], Path]:
    """The shards of every split and language, in a folder of the work folder."""
    dtype = Vocabulary.from_file(bpe.vocab).dtype
    folder = work.path(
        "corpus",
        {texts[key].name: [file.name for file in files] for key, files in encoded.items()},
        settings.shard_tokens,
        suffix="",
    )
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress("binarise", sum(sum(text.bytes) for text in texts.values()), UNITS)
    corpus = {}
    for key, text in texts.items():
        line_bytes = sum(text.bytes) // max(sum(text.lines), 1)

        def count(sentences: int, line_bytes: int = line_bytes) -> None:
            progress.add(sentences * line_bytes, sentences * line_bytes / 1e6, sentences)

        corpus[key] = binarise(encoded[key], text.name, folder, dtype, settings.shard_tokens, count)
    progress.end()
    return corpus, folder


@dataclass(frozen=True)
class Sized:
    """A job of a stage, and the raw text it stands for."""

    job: Any
    bytes: int
    lines: int


def run(name: str, function: Callable[[Any], None], jobs: Iterable[Sized], total: int, workers: Workers) -> None:
    """Do the jobs of a stage whose work file is not there yet."""
    jobs = list(jobs)
    if not jobs:
        return
    workers.ahead(function, functools.partial(list, [sized.job for sized in jobs]))
    progress = Progress(name, total, UNITS)

    def missing() -> Iterator[Any]:
        for sized in jobs:
            if sized.job.out.exists():
                progress.skip(sized.bytes, sized.bytes / 1e6)
            else:
                yield sized.job
                progress.add(sized.bytes, sized.bytes / 1e6, sized.lines)

    for _ in workers.map(function, missing()):
        pass
    progress.end()


# ---- 4. the finished corpus


def show(settings: Settings, result: dict[str, Any]) -> None:
    """The statistics as a table, what looks wrong, and where things are."""
    print(statistics.table(statistics.rows(result["splits"])))
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    words = result["vocabulary"]["entries"]
    print(
        f"{settings.folder}: {result['codes']['merges']:,} codes, {words:,} vocabulary entries, "
        f"lineage {result['lineage'][:12]}; plots in report.html"
    )


if __name__ == "__main__":
    main()
