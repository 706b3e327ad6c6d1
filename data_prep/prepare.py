"""The command xlm-prep, top to bottom: raw text -> tokens -> BPE -> vocabulary -> binarised corpus.

`prepare` shows the chain; each stage below it goes through the text piece by piece, leaves its results in the work
folder and finds them there after a restart.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep import counters, learn_bpe, manifest, report, select, stages, statistics
from data_prep.assign import assign
from data_prep.binarise import (
    Binarised,
    OrderJob,
    RunJob,
    StoredRun,
    run_jobs,
    shard_jobs,
    sort_run,
    write_order,
    write_shard,
)
from data_prep.distributed import workers_for
from data_prep.publish import finished_corpus, locked, publish
from data_prep.reading import check_aligned, tokenise
from data_prep.settings import Key, Settings, read_settings
from data_prep.text import BpeFiles, Encoded, PairText, PairTexts, Text, Texts
from data_prep.work import Sized, Work, Workers, fold, run
from xlm_train.config.command import command
from xlm_train.runtime.console import counted, log, show, waiting
from xlm_train.runtime.device import trim_malloc
from xlm_train.runtime.errors import EXIT_INTERRUPTED, UserError
from xlm_train.runtime.files import make_folder, read_json
from xlm_train.text.vocabulary import Vocabulary

PART_BYTES = 1 << 26  # of text whose words are added up at once
MOST_PARTS = 64  # in which words are added up: each part reads a little of every piece


@command(
    "prep",
    description="Make a binarised corpus of raw text: tokenise, learn and apply joint BPE, binarise.\n"
    "Interrupted, the same command goes on from the last finished piece. docs/data.md explains inputs and settings.",
    examples=[
        "xlm-prep out=data/mine 'train.en=[a.txt,b.gz]' 'train.de=[c.txt]' bpe.n_codes=20000",
        "xlm-prep out=data/ende corpus=news_crawl_ende raw=/downloads workers=16",
        "xlm-prep out=data/pairs 'pairs.de-en.train=[a.de,a.en]' pairs.de-en.valid=valid.tsv",
        "xlm-prep out=data/again codes=codes_ende vocab=vocab_ende train.en=a.txt train.de=c.txt",
    ],
    read=read_settings,
)
def main(settings: Settings) -> int:
    """Prepare a corpus as the command line says."""
    try:
        prepare(settings)
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
        work = Work(folder, tools)
        check_aligned(settings, work, workers)
        finished = finished_corpus(settings, tools)
        if finished is not None:
            log(f"{settings.place} holds exactly this corpus already: nothing to do")
            return finished
        texts, pairs = tokenise(settings, work, workers)
        compare_sides(work, workers, pairs)
        assign(settings, work, workers, texts, pairs)
        every = texts | {side.key: side for pair in pairs.values() for side in pair.sides}
        codes = get_codes(settings, work, workers, every)
        free = {key: text for key, text in every.items() if key[0] == "train" or key[0] not in settings.limited}
        cut = cut_up("cut", work, workers, free, codes, None)
        bpe = get_vocabularies(settings, work, workers, codes, every, cut)
        limited = {key: text for key, text in every.items() if key[0] in settings.limited}
        cut |= cut_up("cut again", work, workers, limited, codes, bpe.limits)
        encoded = encode(work, workers, every, cut, bpe)
        corpus, shards = binarise(settings, work, workers, every, encoded, bpe)
        orders = order_by_length(work, workers, shards, texts, pairs, corpus)
        result = manifest.describe(settings, tools, every, pairs, encoded, corpus, orders, bpe)
        files = bpe.files() | {"report.html": work.copy("report", report.page(result, corpus).encode())}
        publish(settings, result, shards, files, workers)
    tell(settings, result)
    return result


# ---- 1. pairs


def compare_sides(work: Work, workers: Workers, pairs: PairTexts) -> None:
    """Compare the two sides of every pair."""

    def jobs() -> Iterator[Sized]:
        for pair in pairs.values():
            for number, size in enumerate(pair.bytes):
                yield Sized(pair.job(work, number), size, pair.lines[number])

    run("pair", stages.pair_lines, jobs(), workers)


# ---- 2. codes and vocabularies


def get_codes(settings: Settings, work: Work, workers: Workers, texts: Texts) -> Path:
    """The file of BPE codes: the given one, or learned from a sample of the training text.

    Args:
        settings: Says how to learn, or gives the file.
        work: Where the work files are.
        workers: Do the jobs.
        texts: All text, sides of pairs too.
    """
    if settings.codes_file:
        return work.copy("codes", settings.codes_file.read_bytes())
    train = [text for language in settings.learning_order for text in learned_from(texts, language)]
    sentences: Counter[str] = Counter()
    for text in train:
        sentences[text.language] += sum(text.stay)
    shares = (
        select.sample_shares(sentences, settings.bpe.alpha, settings.bpe.sample_sentences)
        if settings.bpe.sample == "alpha"
        else None
    )
    size = sum(sum(text.bytes) * min(1, 1 if shares is None else shares[text.language]) for text in train)
    parts = min(1 << (int(size) // PART_BYTES).bit_length(), MOST_PARTS)  # doubled: the same for a little more text
    files: list[Path] = []

    def jobs() -> Iterator[Sized]:
        first = dict.fromkeys(settings.learning_order, 0)
        for text in train:
            for number in range(len(text.pieces)):
                sample = None if shares is None else (first[text.language], shares[text.language], settings.seed)
                files.append(work.path("words", text.identity(number), sample, parts))
                job = stages.WordsJob(files[-1], text.selection(number), sample, parts)
                yield Sized(job, text.bytes[number], text.lines[number])
                first[text.language] += text.stay[number]

    run("words", stages.count_piece_words, jobs(), workers)
    most = settings.bpe.max_words if settings.bpe.sample == "alpha" else None
    made_by = (settings.bpe.n_codes, settings.bpe.engine, most)
    path = work.path("codes", [file.name for file in files], *made_by, suffix="")
    if not path.exists():
        counts = sum_words(work, workers, files, parts, most)
        what = f"{settings.bpe.n_codes:,} codes from {sum(counts.values()):,} words, {len(counts):,} of them different"
        with waiting("learn", what):
            learn_bpe.learn(counts, settings.bpe.n_codes, settings.bpe.engine).write(path)
        del counts
        trim_malloc()  # 0.1 GB, which later stages have no use for in this process
    return path


def sum_words(work: Work, workers: Workers, files: Sequence[Path], parts: int, most: int | None) -> Mapping[str, int]:
    """How often each word comes.

    Args:
        work: Where the work files are.
        workers: Add up.
        files: Work files of `stages.count_piece_words`.
        parts: Counters in each of them.
        most: Words wanted at most, the rarest are left out; None: all.

    Returns:
        The counts, in the order of first occurrence.

    Raises:
        UserError: More than `most` words come equally often, so that none would be left.
    """
    names = work.copy("names", os.fsencode("\0".join(map(str, files))))
    jobs = [stages.SumJob(work.path("sums", names.name, part), names, part) for part in range(parts)]
    with waiting("sum", "words"):
        workers.do(stages.sum_words, jobs)
        counts, rarest, gone = counters.most_frequent([job.out for job in jobs], most or 1 << 62)
    if rarest and not counts:
        raise UserError(f"bpe.max_words={most}: more words than that come equally often; raise it")
    if rarest:
        log(
            f"learn      words that come up to {counted(rarest, 'time')} are left out (bpe.max_words={most}): "
            f"{gone / (gone + sum(counts.values())):.2%} of the text"
        )
    return counts


def learned_from(texts: Texts, language: str) -> list[Text]:
    """The training text that codes and vocabulary learn a language from: text by itself, else its sides of pairs.

    As in the original's recipe, where parallel text is encoded with what monolingual text taught.
    """
    found = [text for text in texts.values() if text.split == "train" and text.language == language]
    return [text for text in found if text.pair is None] or found


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

    run(name, stages.cut_piece, jobs(), workers)
    return made


def get_vocabularies(
    settings: Settings, work: Work, workers: Workers, codes: Path, texts: Texts, cut: Mapping[Key, list[Path]]
) -> BpeFiles:
    """The joint vocabulary and each language's own, beside the codes: the given ones, or of all training text.

    Args:
        settings: Gives the files, or none.
        work: Where the work files are.
        workers: Do the jobs.
        codes: File of the BPE codes.
        texts: All text, sides of pairs too.
        cut: Work files of pieces, of training text at least.

    Raises:
        UserError: The training text of a language holds no word.
    """
    counts = {
        language: count_pieces(
            work, workers, [file for text in learned_from(texts, language) for file in cut[text.key]]
        )
        for language in settings.learning_order
        if not (settings.vocab_file and settings.language_vocab_files)
    }
    if problems := [f"{language}: its training text holds no word" for language, found in counts.items() if not found]:
        raise UserError(problems)
    own = {language: Vocabulary.from_counts(found).to_text().encode() for language, found in counts.items()}
    own |= {language: file.read_bytes() for language, file in settings.language_vocab_files.items()}
    limits = {language: work.copy(f"vocab.{language}", own[language]) for language in sorted(own)}
    if settings.vocab_file:
        joint = settings.vocab_file.read_bytes()
    else:
        joint = Vocabulary.from_counts(sum(counts.values(), Counter())).to_text().encode()
    return BpeFiles(codes, work.copy("vocab", joint), limits)


def count_pieces(work: Work, workers: Workers, files: list[Path]) -> Counter[str]:
    """How often each BPE piece comes, by the counters of work files."""

    def job(some: tuple[Path, ...]) -> stages.TotalJob:
        return stages.TotalJob(work.path("totals", [file.name for file in some]), some)

    return counters.total(fold(workers, stages.add_up, files, job))


# ---- 3. ids


def encode(
    work: Work, workers: Workers, texts: Texts, cut: Mapping[Key, list[Path]], bpe: BpeFiles
) -> dict[Key, Encoded]:
    """Every piece of every split as ids.

    Args:
        work: Where the work files are.
        workers: Do the jobs.
        texts: All text, sides of pairs too.
        cut: Work files of the pieces of each.
        bpe: Its joint vocabulary gives the ids.
    """
    files: dict[Key, list[Path]] = {key: [] for key in texts}

    def jobs() -> Iterator[Sized]:
        for key, text in texts.items():
            for number, pieces in enumerate(cut[key]):
                out = work.path("ids", pieces.name, bpe.vocab.name)
                files[key].append(out)
                yield Sized(stages.EncodeJob(out, pieces, bpe.vocab), text.bytes[number], text.lines[number])

    run("encode", stages.encode_piece, jobs(), workers)
    return {key: Encoded.of(made) for key, made in files.items()}


def binarise(
    settings: Settings, work: Work, workers: Workers, texts: Texts, encoded: Mapping[Key, Encoded], bpe: BpeFiles
) -> tuple[dict[Key, Binarised], Path]:
    """The shards of every split and language, in a folder of the work folder.

    Args:
        settings: Says how many tokens a shard has.
        work: Where the work files are.
        workers: Do the jobs.
        texts: All text, sides of pairs too.
        encoded: Its ids.
        bpe: The size of its joint vocabulary decides the type of ids.
    """
    dtype = stages.read_vocabulary(bpe.vocab).dtype
    folder = work.path(
        "corpus",
        {texts[key].name: [file.name for file in made.pieces] for key, made in encoded.items()},
        settings.shard_tokens,
        suffix="",
    )
    make_folder(folder)
    records: dict[Key, list[Path]] = {}

    def jobs() -> Iterator[Sized]:
        for key, text in texts.items():
            made = encoded[key]
            found = list(shard_jobs(made.pieces, made.tokens, text.name, folder, dtype, settings.shard_tokens))
            records[key] = [job.out for job in found]
            for job in found:
                yield Sized(job, sum(text.bytes) // len(found), sum(text.lines) // len(found))

    run("binarise", write_shard, jobs(), workers)
    return {key: Binarised.of(found) for key, found in records.items()}, folder


def order_by_length(
    work: Work, workers: Workers, folder: Path, texts: Texts, pairs: PairTexts, corpus: Mapping[Key, Binarised]
) -> dict[str, dict[str, Any]]:
    """The length order of every text and of all pairs, beside the shards; the manifest's entries, by the text's name.

    Args:
        work: Where the work files are.
        workers: Do the jobs.
        folder: Of the shards.
        texts: Text by itself.
        pairs: All pairs.
        corpus: The shards of each text and side.
    """
    runs: list[RunJob] = []
    orders: list[OrderJob] = []
    every: list[Text | PairText] = [*texts.values(), *pairs.values()]
    for text in every:
        languages = text.languages if isinstance(text, PairText) else ()
        place = work.path("runs", folder.name, text.name, suffix="")
        make_folder(place)
        found = list(run_jobs(place, folder, languages, [corpus[side.key] for side in text.sides]))
        stored = tuple(StoredRun(job.out, job.first) for job in found)
        orders.append(OrderJob(folder / f"{text.name}.bylength.json", text.name, bool(languages), stored))
        if not orders[-1].out.exists():
            runs += found
    with waiting("order", f"{sum(made.sentences for made in corpus.values()):,} sentences by length"):
        workers.do(sort_run, runs)
        workers.do(write_order, orders)
    return {order.name: read_json(order.out) for order in orders}


# ---- 4. the finished corpus


def tell(settings: Settings, result: dict[str, Any]) -> None:
    """The statistics as a table, what looks wrong, and where things are."""
    for cells in filter(None, (statistics.rows(result), statistics.pair_rows(result))):
        show(statistics.table(cells))
    for warning in result["warnings"]:
        show(f"warning: {warning}")
    words = result["vocabulary"]["entries"]
    show(
        f"{settings.place}: {result['codes']['merges']:,} codes, {words:,} vocabulary entries, "
        f"lineage {result['lineage'][:12]}; plots in report.html"
    )


if __name__ == "__main__":
    main()
