"""What people get wrong on the command line, and what they are told. `test_table.py` makes the folder it happens in."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

LONG = "x" * 300
COMMANDS = ("prep", "train", "eval", "generate", "translate", "export", "import", "report", "plan")


@dataclass(frozen=True)
class Mistake:
    """A command line and its answer.

    line: As it is typed.
    said: A part of the message.
    status: The exit status.
    apart: Whether it is tried in a process of its own, too.
    leaves: The folder of a run that had begun: it says what went wrong.
    file_bytes, without, stdout: See tests/forked.py.
    """

    line: str
    said: str
    status: int = 2
    apart: bool = False
    leaves: str = ""
    file_bytes: int | None = None
    without: str = ""
    stdout: str = ""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def of(beginning: str, *mistakes: tuple[str, str]) -> Iterable[Mistake]:
    """Command lines that begin alike."""
    return (Mistake(f"{beginning} {rest}", said) for rest, said in mistakes)


PREP = "xlm-prep out=new train.en=text.en train.de=text.de bpe.n_codes=50 holdout.sentences=2 workers=1"
TRAIN = "xlm-train experiment=smoke data.path=corpus run_name=new"
SWEEP = f"{TRAIN} -m"
EVAL = "xlm-eval checkpoint=runs/first"
SCORE = f"{EVAL} data.path=corpus"
GENERATE = "xlm-generate checkpoint=runs/first lang=en"
CONTINUE = f"{GENERATE} prompt=The"
TRANSLATE = "xlm-translate checkpoint=runs/translator src=en tgt=de"
EXPORT = "xlm-export checkpoint=runs/first out=new"
IMPORT = "xlm-import out=new file=text.en"
PLAN = "xlm-plan experiment=smoke cluster=v100_8 data.slots=8"
BEGINNINGS = (PREP, TRAIN, SCORE, CONTINUE, f"{TRANSLATE} text=The", EXPORT, IMPORT, "xlm-report run_name=first", PLAN)

EVERYWHERE = [
    mistake
    for name in COMMANDS
    for mistake in (
        Mistake(f"xlm-{name} no_such_key=1", "no_such_key=1: there is no 'no_such_key'"),
        Mistake(f"xlm-{name} folder", "folder: settings are written key=value", apart=True),
    )
]

FLAGS = [
    *of(
        TRAIN,
        ("--seed 5", "--seed: settings are written key=value, without dashes, as seed=5"),
        ("--seed=5", "--seed=5: settings are written key=value, without dashes, as seed=5"),
        ("resume=true", "resume=true: there is no 'resume'; here: the same run_name resumes"),
        ("trainer.strategy=ddp", "there is no 'trainer.strategy'; here: trainer.sharding"),
        ("-m --cfg job", "-m and --cfg: give one of them"),
        ("--resolve", "--resolve: belongs to --cfg job"),
        ("--cfg everything", "--cfg everything: must be one of job, hydra, all"),
        ("--config-dir", "--config-dir: has no value"),
        ("--experimental-rerun config.pickle", "--experimental-rerun: settings are written key=value"),
        ("-sc install=bash", "-sc: settings are written key=value"),
        ("--config-dir nowhere", "--config-dir=nowhere: there is no such folder"),
        ("--config-dir mine experiment=broken", "--config-dir=mine: a config in it cannot be read"),
        ("--config-dir mine experiment=unknown", "optimzer: there is no 'optimzer' (did you mean optimizer"),
        ("--config-dir mine experiment=others", "Could not find 'model/gpt'"),
        ("hydra.verbos=true", "Could not override 'hydra.verbos'"),
    ),
]

TRAINING = [
    Mistake("xlm-train", "data.path has no value: give data.path=..."),
    *of(
        TRAIN,
        # what is not there
        ("optimiser.lr=1", "there is no 'optimiser.lr' (did you mean optimizer.lr"),
        ("batch_size=8", "batch_size=8: there is no 'batch_size'; here: data.slots x data.slot_streams windows"),
        ("~data.path", "data.path has no value"),
        ("~optimizer", "optimizer._target_ has no value"),
        # values of the wrong kind
        ("data.slots=", "data.slots has no value: give data.slots=..."),
        ("data.path=5", "data.path=5: must be text"),
        ("trainer.max_steps=null", "say how long to train"),
        ("optimizer.lr=nan", "optimizer.lr=nan: must be finite"),
        ("optimizer.lr=0", "optimizer.lr=0: must be positive: with 0 nothing is learned"),
        ("optimizer.eps=[a]", "optimizer.eps=['a']: must be a number"),
        ("optimizer.eps=0", "optimizer.eps=0: must be positive: gradients of 0 would be divided by 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be a list of 2 numbers, as [0.9,0.999]"),
        ("schedule.warmup_updates=-5", "schedule.warmup_updates=-5: must not be negative"),
        ("callbacks.metrics.every_n_steps=0", "callbacks.metrics.every_n_steps=0: must be at least 1"),
        ("callbacks.validation.monitor=val/acu", "callbacks.validation.monitor=val/acu: must be one of val/ppl"),
        ("+callbacks.mine=5", "callbacks.mine=5: must be a mapping or null"),
        # combinations that cannot work
        ("model.n_heads=3", "model.n_heads=3 does not divide model.dim=32; model.n_heads=2 would"),
        ("data.bptt=65", "data.bptt=65 is longer than model.max_positions=64"),
        ("trainer.devices=3", "3 processes, but data.slots=2"),
        ("objective=mt", "has no parallel text train.de-en"),
        # files, folders and names
        ("init_from=nowhere.pt", "init_from=nowhere.pt: there is no such file or folder"),
        ("data.path=nowhere", "data.path=nowhere: there is no such folder; xlm-prep makes one"),
        (f"data.path={LONG}", "has a name of 300 bytes; files and folders have at most 255"),
        ("data.path='${nowhere}'", "data.path: Interpolation key 'nowhere' not found"),
        (f"run_name={LONG}", "has a name of 300 bytes"),
        ("'run_name=a b'", "run_name=a b: use letters, digits and"),
        ("run_name=", "run_name has no value"),
        ("run_name=first/checkpoints", "run_name=first/checkpoints: runs/first is a run"),
        ("run_name=first optimizer.lr=5", "optimizer.lr: was 0.001, now 5"),
        ("run_name=unreadable trainer.precision=auto", "runs/unreadable/config.yaml: is damaged"),
        ("run_name=cut trainer.precision=32-true", "runs/cut/config.yaml: is damaged: not whole"),
        ("run_name=linked", "runs/linked/excluded.json: cannot be read"),
        ("paths.runs=text.en", "paths.runs: text.en/new cannot be made: Not a directory"),
        ("logger=null", "logger=null: logger has no option 'null'; there are local"),
        ("hydra=null", "Config group override must be a string or a list"),
        ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: a sweep is asked for with -m"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: paths are from where a command is typed"),
        ("hydra.job.chdir=false data.path=nowhere", "data.path=nowhere: there is no such folder"),
        ("optimizer.lr=1e-3 schedule.warmup_updates=1e3 data.path=nowhere", "nowhere: there is no such folder"),
        ("+hydra.callbacks.x._target_=a.b", "a run's callbacks are +callbacks.NAME._target_=CLASS"),
        ("optimizer@foo=adamw", "Could not override 'optimizer@foo'"),
        ("--config-dir denied", "denied/experiment: Permission denied"),
        ("--config-dir mine experiment=home", "paths.runs=~/runs: ~ is not replaced in a config: ${oc.env:HOME}/runs"),
        ("paths.runs=denied", "denied/new/checkpoints: cannot be read: Permission denied"),
        ("data.path=denied/x", "denied/x: Permission denied"),
        ("data.path=~/nowhere", "/nowhere: there is no such folder; xlm-prep makes one"),
        ("init_from=denied/x.pt", "denied/x.pt: Permission denied"),
        ("run_name=around", "run_name=around: runs/around/inner is a run"),
        ("data.slots=1000000000000000000", "data.slots=1000000000000000000: must be at most 1000000"),
        ("model.dim=1000000000", "model.dim=1000000000 must be at most 131072"),
        ("model.n_layers=1000000000", "model.n_layers=1000000000 must be at most 4096"),
        ("model.vocab_multiple=100000000", "model.vocab_multiple=100000000 must be at most 65536"),
        ("logger.console.seconds=[1]", "logger.console.seconds=[1]: must be a number"),
        ("optimizer.weight_decay=true", "optimizer.weight_decay=True: must be a number"),
        ("optimizer.lr=true", "optimizer.lr=True: must be a number"),
        ("schedule.warmup_updates=[1]", "schedule.warmup_updates=[1]: must be a number"),
        ("schedule.warmup_updates=true", "schedule.warmup_updates=True: must be a number"),
        ("schedule.warmup_updates=null", "schedule.warmup_updates=null: must have a value"),
        ("'hydra.searchpath=[file:///x]'", "is given as --config-dir=FOLDER"),
        ("trainer.threads=9223372036854775808", "must be a whole number or null, below 2^63"),
        ("callbacks.validation.beam=4", "callbacks.validation.beam=4: a language model translates nothing"),
        (
            "schedule=cosine trainer.max_steps=null trainer.max_tokens=1000",
            "schedule.total_updates=${trainer.max_steps}: must have",
        ),
        ("paths.runs=ftp://host/runs", "paths.runs=ftp://host/runs: ftp:// is not supported to write to"),
        ("'data.path=[a'", "data.path=[a: not a valid override"),
    ),
    *of(
        "xlm-train",
        ("verify=folder", "verify=folder: there is no step-*.pt in it"),
        (f"verify={LONG}", "has a name of 300 bytes"),
    ),
    Mistake(f"{TRAIN} model.ffn_dim=1000000 model.n_layers=4000", "this run cannot fit into memory", status=71),
    Mistake(
        f"{TRAIN} schedule=constant schedule.warmup_updates=0 optimizer.lr=1e38 trainer.max_steps=1",
        "step 1: the weights are not finite, so no checkpoint is written",
        leaves="runs/new",
    ),
    Mistake(f"{TRAIN} logger=wandb", "pip install 'xlm_train[wandb]'", without="wandb"),
    Mistake(f"{TRAIN} logger=tensorboard", "pip install 'xlm_train[tensorboard]'", without="tensorboard"),
    Mistake(f"{TRAIN} data.path=s3://bucket/corpus", "pip install 'xlm_train[s3]'", without="s3fs"),
    Mistake(f"{TRAIN} paths.runs=s3://bucket/runs", "pip install 'xlm_train[s3]'", without="s3fs"),
    Mistake(f"{TRAIN} init_from=text.en", "text.en: does not end as a checkpoint", leaves="runs/new"),
    Mistake(f"{TRAIN} init_from=runs/first model.dim=64", "set model.dim=32", leaves="runs/new"),
    Mistake(TRAIN, "cannot be written: File too large", leaves="runs/new", file_bytes=100),
    Mistake(f"{TRAIN} run_name=used", "runs/used/energy.json: is damaged: it must have energy_kwh", leaves="runs/used"),
]

SWEEPS = list(
    of(
        SWEEP,
        ("data.slots=2,0", "data.slots=0: must be at least 1"),
        ("model=tiny,gpt", "model has no option 'gpt'"),
        ("run_name=a,b", "run_name=a,b: one sweep has one run_name"),
        ("hydra/launcher=slurm seed=1,2", "hydra/launcher=slurm: there is no srun on this machine"),
        ("'hydra.sweeper.params.seed=choice(1,2)'", "what varies stands in a config's hydra.sweeper.params"),
        ("'optimizer.lr=interval(1e-4,1e-3)'", "only a search draws from an interval"),
        ("seed=1,2 run_name=", "run_name='': use letters"),
        ("seed=1,1", "seed=1 and seed=1: would share a run's folder"),
        ("init_from=runs/first,runs_first", "would share a run's folder; name the values otherwise"),
        ("data.path=corpus,denied/x", "denied/x: Permission denied"),
        ("optimizer@foo=adamw seed=1,2", "Could not override 'optimizer@foo'"),
        (f"seed=1,2 cluster.name=a,{LONG[:250]}", "bytes; a folder's name has at most 255"),
    )
)

EVALUATION = [
    Mistake("xlm-eval", "checkpoint has no value: give checkpoint=..."),
    Mistake(
        "xlm-eval checkpoint=nowhere.pt data.path=corpus", "checkpoint=nowhere.pt: there is no such file", apart=True
    ),
    *of(
        "xlm-eval data.path=corpus",
        ("checkpoint=folder", "checkpoint=folder: is a folder without checkpoints"),
        ("checkpoint=text.en", "text.en: does not end as a checkpoint of xlm_train"),
        ("checkpoint=empty.txt", "empty.txt: 0 bytes: not a checkpoint"),
        (f"checkpoint={LONG}", "has a name of 300 bytes"),
        ("checkpoint=", "checkpoint has no value"),
        ("checkpoint='no süßes, a=b.pt'", "checkpoint=no süßes, a=b.pt: there is no such file"),
        ("checkpoint=hf://model", "hf://model: is no URL of a file or run: hf://BUCKET/NAME"),
    ),
    *of(
        SCORE,
        ("split=tst", "split=tst: must be one of train, valid, test"),
        ("bptt=999", "bptt=999: must be from 2 to 64"),
        ("beam=5", "is a language model: nothing is translated"),
        ("device=gpu", "device=gpu: must be one of auto, cpu, cuda"),
        ("device=cuda", "device=cuda: this PyTorch sees no GPU"),
        ("out=/proc/x.json", "out=/proc/x.json: /proc is not writable"),
        ("out=", "out has no value"),
        ("text.en=text.en", "text.LANGUAGE=FILE for raw text: one of them"),
        ("beam=1000000000000", "beam=1000000000000: must be at most 1000"),
        ("out=denied/x.json", "out=denied/x.json: denied is not writable (Permission denied)"),
        ("checkpoint=denied/x.pt", "denied/x.pt/checkpoints: Permission denied"),
    ),
    *of(
        EVAL,
        ("data.path=nowhere", "data.path=nowhere: there is no such folder"),
        ("text.en=binary.txt", "text.en=binary.txt: is binary, not UTF-8 text"),
        ("text.fr=text.en", "text.fr=text.en: "),
        ("text.en=text.en baselines=true", "baselines=true needs a corpus with a train split"),
        ("text.en=latin.txt out=scores.json", "latin.txt:2: is not UTF-8"),
        ("text.en=denied/x", "text.en=denied/x: cannot be read: Permission denied"),
        ("text.en=- out=scores.json", "-: is empty"),
        ("text.en=mark.txt out=scores.json", "text.en=mark.txt: holds no text"),
        ("text.en=text.en out=text.en", "out=text.en: would overwrite text.en=text.en"),
        ("text.en=scores.en.jsonl out=scores.json", "out=scores.json: would overwrite text.en=scores.en.jsonl"),
    ),
    Mistake(f"{SCORE} out=scores.json", "scores.json: cannot be written: File too large", file_bytes=100),
    Mistake(f"{SCORE} out=scores.json", "standard output: cannot be written: No space left", stdout="/dev/full"),
    Mistake("xlm-eval checkpoint=s3://b/x data.path=corpus", "pip install 'xlm_train[s3]'", without="s3fs"),
]

GENERATION = [
    Mistake("xlm-generate", "lang has no value: give lang=..."),
    *of(
        CONTINUE,
        ("temperature=nan", "temperature=nan: must be finite"),
        ("temperature=inf", "temperature=inf: must be finite"),
        ("temperature=-1", "temperature=-1: must be 0 (greedy) or positive"),
        ("num_samples=2", "num_samples=2: temperature=0 gives the same text each time"),
        ("bptt=999", "bptt=999: must be from 2 to 64"),
        ("lang=fr", "lang=fr: runs/first/checkpoints/best.pt knows the languages de, en"),
        ("checkpoint=runs/translator", "is a translation model, where a language model is needed"),
        ("prompts_file=text.en", "give prompt='...' or prompts_file=FILE, one of them"),
        ("out=text.en/x.jsonl", "out=text.en/x.jsonl: text.en is no folder"),
        (f"out={LONG}", "has a name of 300 bytes"),
        ("seed=4", "seed=4: has no effect without draws: temperature=1"),
        ("temperature=1 num_samples=1000000000000", "num_samples=1000000000000: must be at most 1000000"),
        ("out=runs/first/checkpoints/best.pt", "would overwrite checkpoint=runs/first/checkpoints/best.pt"),
    ),
    *of(
        GENERATE,
        ("prompts_file=-", "-: is empty"),
        ("prompts_file=text.en out=text.en", "out=text.en: would overwrite prompts_file=text.en"),
        ("seed=1", "give prompt='...' or prompts_file=FILE, one of them"),
        ("prompts_file=folder", "prompts_file=folder: is a folder; give a text file"),
        ("prompts_file=binary.txt", "prompts_file=binary.txt: is binary, not UTF-8 text"),
        ("prompts_file=latin.txt", "latin.txt:2: is not UTF-8"),
    ),
    Mistake(f"{CONTINUE} out=texts.jsonl", "texts.jsonl: cannot be written: File too large", file_bytes=10),
    Mistake(CONTINUE, "standard output: cannot be written: No space left", stdout="/dev/full"),
]

TRANSLATION = [
    Mistake("xlm-translate", "src has no value: give src=..."),
    *of(
        f"{TRANSLATE} text=The",
        ("src=fr", "src=fr: runs/translator/checkpoints/step-00000002.pt knows the languages de, en"),
        ("tgt=fr out=new.de", "tgt=fr: "),
        ("src=de", "src=de tgt=de: give two languages"),
        ("file=text.en", "give text='...' or file=FILE, not both"),
        ("threads=0", "threads=0: must be at least 1"),
        ("seed=4", "seed=4: has no effect without draws: temperature=1"),
        ("beam=1000000", "beam=1000000: must be at most 1000"),
        ("out=blocked", "blocked.part: cannot be written: Is a directory"),
        ("checkpoint=runs/first", "is a language model, where a translation model is needed"),
    ),
    *of(
        TRANSLATE,
        ("file=nowhere.en", "file=nowhere.en: there is no such file"),
        ("file=text.en out=text.en", "out=text.en: would overwrite file=text.en"),
        ("file=blocked.part/x out=new.de", "file=blocked.part/x: there is no such file"),
        ("file=folder", "file=folder: is a folder; give a text file"),
        ("file=binary.txt", "file=binary.txt: is binary, not UTF-8 text"),
    ),
    Mistake(f"{TRANSLATE} file=text.en out=new.de", "cannot be written: File too large", file_bytes=10),
    Mistake(f"{TRANSLATE} text=The", "standard output: cannot be written: No space left", stdout="/dev/full"),
]

EXPORTS = [
    Mistake("xlm-export", "out has no value: give out=..."),
    *of(
        EXPORT,
        ("data.path=corpus", "give checkpoint=FILE for a model, or data.path=FOLDER for a corpus: one of them"),
        ("checkpoint=nowhere.pt", "checkpoint=nowhere.pt: there is no such file"),
        ("checkpoint=folder", "checkpoint=folder: is a folder without checkpoints"),
        ("lang=en", "lang=en: only folders of masked models"),
        ("codes=binary.txt", "binary.txt: not UTF-8"),
        ("codes=text.en", "not a `left right count` line of fastBPE"),
        ("evaluation=text.en", "text.en: is not valid JSON"),
        ("sample.fr=text.en", "sample.fr: the checkpoint knows the languages de, en"),
        ("sample.en=binary.txt", "sample.en=binary.txt: is binary, not UTF-8 text"),
        ("optimizer=maybe", "optimizer=maybe: must be true or false"),
        ("card.watts=-5", "card.watts=-5: must be at least 0"),
        ("out=runs", "out=runs: is not empty and no earlier export"),
        ("out=text.en/x", "out=text.en/x: cannot be written: Not a directory"),
        ("out=/proc/x", "out=/proc/x: cannot be written"),
        ("out=.", "out=.: give the name of a folder to make"),
        ("out=", "out has no value"),
        (f"out={LONG}", "has a name of 300 bytes"),
        ("out=ftp://host/x", "out=ftp://host/x: ftp:// is not supported"),
        ("out=denied/x", "denied/x: Permission denied"),
        ("format=xlm sample.en=text.en", "sample={'en': 'text.en'}: of folders for transformers (format=hf)"),
        ("format=xlm card.license=mit", "card.license=mit: of folders for transformers (format=hf)"),
    ),
    *of(
        "xlm-export out=new",
        ("data.path=corpus", "data.path: a corpus can only be exported with format=xlm"),
        ("data.path=corpus format=xlm codes=corpus/codes", "codes=corpus/codes: a corpus has its own"),
    ),
    Mistake(EXPORT, "cannot be written: File too large", file_bytes=1000),
    Mistake(f"{EXPORT} format=xlm", "cannot be written: File too large", file_bytes=1000),
    Mistake("xlm-export data.path=corpus out=new format=xlm", "cannot be written: File too large", file_bytes=1000),
]

IMPORTS = [
    Mistake("xlm-import", "file has no value: give file=..."),
    *of(
        IMPORT,
        ("file=nowhere.pth", "file=nowhere.pth: there is no such file or folder"),
        ("codes=null", "text.en: cannot be read safely: it is not a file of torch.save"),
        ("file=binary.txt", "binary.txt: "),
        ("file=", "file has no value"),
        (f"file={LONG}", "has a name of 300 bytes"),
        ("codes=binary.txt", "binary.txt: not UTF-8"),
        ("bptt=1", "bptt=1: a window needs at least 2 tokens"),
        ("out=runs", "out=runs: is there already; give another folder"),
        ("file=denied/x", "denied/x: Permission denied"),
        ("split=train", "split and lang: give both"),
        ("split=train lang=en bptt=5", "bptt=5: has no effect on binarised text"),
        ("file=bent", "bent/config.json: emb_dim=-1, but the model's is 32"),
        ("file=bent", "bent/config.json: pad_index=7, but the model's is 2"),
        ("file=windowless", "windowless/config.json: bptt=-5: must be a whole number of at least 2"),
        ("file=flipped", "flipped/model.safetensors: is not what was exported"),
        ("file=diverged", "holds weights that are not finite: embeddings.weight"),
        ("file=strange languages=[de,en]", "languages=['de', 'en']: has no effect on a folder of transformers"),
        ("vocab=corpus/vocab", "vocab=corpus/vocab: has no effect on a checkpoint"),
        ("out=.", "out=.: give the name of a folder to make"),
    ),
]

PREPARATION = [
    Mistake("xlm-prep", "out has no value: give out=..."),
    Mistake("xlm-prep out=new", "no text is given: train.LANG=[FILE, ...] for each language"),
    *of(
        "xlm-prep out=new train.de=text.de",
        ("train=text.en", "train=text.en: which language? give train.en=..."),
        ("train.en=folder", "train.en: folder: is a folder with no text known here"),
        ("train.en=texts", "texts: is a folder; its text files are 'texts/*.txt'"),
        ("train.en=binary.txt", "train.en: binary.txt: is binary, not UTF-8 text"),
        ("train.en=archive.zip", "train.en: archive.zip: is an archive"),
        ("train.en=text.de", "text.de is given twice"),
        ("train.en=", "train.en: '' is no input"),
        (f"train.en={LONG}", "has a name of 300 bytes"),
        (f"train.en=[text.en,{LONG}]", "has a name of 300 bytes"),
        ("pairs=[text.de,text.en]", "pairs is no list"),
        ("pairs.de-en.trn=text.en", "pairs.de-en.trn: there is no split 'trn' (did you mean train"),
        ("pairs.de-en.train=text.en", "pairs.de-en.train: text.en is no parallel text"),
        ("corpus=news", "corpus has no option 'news'; there are news_crawl_ende"),
    ),
    *of(
        PREP,
        ("bpe.n_codes=0", "bpe.n_codes=0: must be a whole number from 1"),
        ("bpe.alpha=nan", "bpe.alpha=nan: must be finite"),
        ("bpe=5", "bpe=5: has fields"),
        ("codes=text.en", "codes: text.en:1: not a `left right count` line of fastBPE"),
        ("language_vocab.en=text.en", "language_vocab.de: is not given, but another language's is"),
        ("workers=0", "workers=0: must be a whole number from 1"),
        ("out=text.en/x", "out=text.en/x: cannot be made: "),
        ("out=/proc/x", "out=/proc/x: cannot be made: /proc is not writable"),
        ("out=", "out has no value"),
        ("out=foreign", "out=foreign: holds codes from elsewhere, to be overwritten"),
        ("out=denied/x", "denied/x: Permission denied"),
        ("train.en=denied/x", "denied/x: Permission denied"),
        ("out=elsewhere", "out=elsewhere: its .work must be a folder on the same file system"),
        ("out=folders", "out=folders: codes in it: a folder where a file belongs"),
        ("codes=marked.codes", "marked.codes: begins with a byte order mark"),
    ),
    Mistake(f"{PREP} out=cut", "overwrite=true makes the corpus again", leaves="cut"),  # its lock
    Mistake(f"{PREP} executor=local", "pip install 'xlm_train[datatrove]'", without="datatrove"),
    Mistake(f"{PREP} 'train.en={{dataset: nowhere}}'", "pip install 'xlm_train[hub]'", without="datasets"),
]

REPORTS = [
    Mistake("xlm-report", "run_name has no value: give run_name=..."),
    *of(
        "xlm-report",
        ("run_name=nowhere", "run_name=nowhere: there is no run of that name in runs; there are"),
        (f"run_name={LONG}", "has a name of 300 bytes"),
        ("run_name=first paths.runs=nowhere", "paths.runs=nowhere: there is no such folder"),
        ("run_name=first compare=first", "compare=first: must be a list, as [a,b]"),
        ("run_name=first compare=[first]", "compare=first: is named twice"),
        ("run_name=blocked", "runs/blocked/plots: cannot be made: File exists"),
        ("run_name=first paths.runs=denied", "denied/first/config.yaml: Permission denied"),
    ),
    Mistake("xlm-report run_name=first", "curves.png: cannot be written: File too large", file_bytes=100),
]

PLANS = [
    *of(
        PLAN,
        ("plan.epochs=2", "plan.epochs needs a corpus to count: give data.path=CORPUS"),
        ("plan.efficiency=nan", "plan.efficiency=nan: must be finite"),
        ("plan.probe=true", "plan.probe=true measures this machine's CPU"),
        ("plan=5", "plan=5: has fields"),
        ("~plan", "plan has no value"),
        ("data.path=nowhere", "data.path=nowhere: there is no such folder"),
        ("data.path='${nowhere}'", "data.path: Interpolation key 'nowhere' not found"),
        ("trainer.precision=[a]", "trainer.precision=['a']: must be text"),
        ("out=5", "out=5: must be text or null"),
        ("out=", "out has no value"),
        ("out=denied/x", "denied/x: Permission denied"),
        ("plan.loss=1e308", "plan.loss=1e+308: must be at most 100"),
        ("cluster.efficiency=3", "cluster.efficiency=3: is a share of the peak"),
        ("cluster.inter_node_gbytes_per_s=-5", "cluster.inter_node_gbytes_per_s=-5: must be positive"),
        ("cluster.price_per_device_hour=-5", "cluster.price_per_device_hour=-5: must be at least 0"),
        ("cluster.peak_tflops={16-mixed:-5}", "each must be positive"),
    ),
    Mistake(
        f"{PLAN} cluster.memory_gb=1", "this run does not fit, whatever the size of a slot: a smaller model", status=71
    ),
    Mistake(f"{PLAN} out=new", "cannot be written: File too large", file_bytes=100),
    Mistake(PLAN, "standard output: cannot be written: No space left", stdout="/dev/full"),
]

TABLE = [
    *EVERYWHERE, *FLAGS, *TRAINING, *SWEEPS, *EVALUATION, *GENERATION, *TRANSLATION, *EXPORTS, *IMPORTS, *PREPARATION,
    *REPORTS, *PLANS,
]  # fmt: skip
