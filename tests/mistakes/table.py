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
    file_bytes, without, stdout: See forked.Request.
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
IMPORT = "xlm-import out=new"
PLAN = "xlm-plan experiment=smoke cluster=v100_8 data.slots=8"

EVERYWHERE = [
    mistake
    for name in COMMANDS
    for mistake in of(
        f"xlm-{name}",
        ("no_such_key=1", "no_such_key=1: there is no 'no_such_key'"),
        ("--seed 5", "--seed: settings are written key=value, without dashes"),
        ("folder", "folder: settings are written key=value"),
        ("--config-dir nowhere", "--config-dir=nowhere: there is no such folder"),
    )
]

FLAGS = [
    *of(
        TRAIN,
        ("-m --cfg job", "-m and --cfg: give one of them"),
        ("--resolve", "--resolve: belongs to --cfg job"),
        ("--cfg everything", "invalid choice: 'everything'"),
        ("--cfg", "expected one argument"),
        ("--config-name demo", "--config-name: settings are written key=value"),
        ("--experimental-rerun config.pickle", "--experimental-rerun: settings are written key=value"),
        ("-sc install=bash", "-sc: settings are written key=value"),
        ("--config-dir text.en", "--config-dir=text.en: there is no such folder"),
        ("--config-dir mine experiment=broken", "--config-dir=mine: a config in it cannot be read"),
        ("--config-dir mine experiment=binary", "--config-dir=mine: a config in it cannot be read"),
        ("--config-dir mine experiment=words", "--config-dir=mine: a config in it cannot be read"),
        ("--config-dir mine experiment=unknown", "optimzer: there is no 'optimzer' (did you mean optimizer?)"),
        ("--config-dir mine experiment=others", "Could not find 'model/gpt'"),
        ("hydra.verbos=true", "Key 'verbos' is not in struct"),
        ("hydra/launcher=nowhere", "hydra/launcher/nowhere"),
    ),
]

TRAINING = [
    Mistake("xlm-train", "data.path has no value: give data.path=...", apart=True),
    *of(
        TRAIN,
        # what is not there
        ("experiment=dmo", "experiment has no option 'dmo' (did you mean demo"),
        ("model=gpt", "model has no option 'gpt'; there are"),
        ("optimizer=sgd", "optimizer has no option 'sgd'"),
        ("logger=mlflow", "logger has no option 'mlflow'"),
        ("data=5", "data has no option '5'"),
        ("optimiser.lr=1", "there is no 'optimiser.lr' (did you mean optimizer.lr?)"),
        ("lr=1", "there is no 'lr' (did you mean optimizer.lr"),
        ("batch_size=8", "batch_size=8: there is no 'batch_size'; here: data.slots x data.slot_streams windows"),
        ("ckpt_path=x.pt", "ckpt_path=x.pt: there is no 'ckpt_path'; here: the same run_name resumes"),
        ("+optimzer.lr=1", "optimzer: there is no 'optimzer' (did you mean optimizer?)"),
        ("+optimizer.momentum=1", "torch.optim.AdamW takes no 'momentum'"),
        ("~data.path", "data.path has no value"),
        ("~data", "data has no value"),
        ("~trainer", "trainer has no value"),
        ("~optimizer", "optimizer has no value"),
        ("~nothing", "there is no 'nothing'"),
        # values of the wrong kind
        ("data.slots=two", "data.slots=two: must be a whole number"),
        ("data.slots=1.5", "data.slots=1.5: must be a whole number"),
        ("data.slots=1,2", "data.slots=1,2: must be a whole number; several values are a sweep, which -m starts"),
        ("data.slots=", "data.slots has no value: give data.slots=..."),
        ("data.slots=[2]", "data.slots=[2]: must be a whole number"),
        ("data.path=5", "data.path=5: must be text"),
        ("data.path=[corpus]", "data.path=['corpus']: must be text"),
        ("data.path=", "data.path has no value"),
        ("seed=-1", "seed=-1: must be a whole number from 0"),
        ("seed=1e3", "seed=1000.0: must be a whole number"),
        ("seed=99999999999999999999", "seed=99999999999999999999: must be a whole number from 0 to 2^63 - 1"),
        ("trainer.max_steps=ten", "trainer.max_steps=ten: must be a whole number or null"),
        ("trainer.max_steps=0", "trainer.max_steps=0: must be positive"),
        ("trainer.max_steps=null", "say how long to train"),
        ("trainer.max_hours=nan", "trainer.max_hours=nan: must be finite"),
        ("trainer.clip_norm=inf", "trainer.clip_norm=inf: must be finite"),
        ("optimizer.lr=fast", "optimizer.lr=fast: must be a number"),
        ("optimizer.lr=nan", "optimizer.lr=nan: must be finite"),
        ("optimizer.lr=0", "optimizer.lr=0: must be positive: with 0 nothing is learned"),
        ("optimizer.lr=-1e-4", "optimizer.lr=-0.0001: must be positive"),
        ("optimizer.lr=[1]", "optimizer.lr=[1]: must be a number"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be a list of 2 numbers, as [0.9,0.999]"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9: must be a list of 2 numbers"),
        ("optimizer.betas=[0.9,nan]", "optimizer.betas=[0.9, nan]: must be finite"),
        ("optimizer.betas=[1.5,0.9]", "optimizer: torch.optim.AdamW: Invalid beta parameter at index 0: 1.5"),
        ("optimizer=original_adam optimizer.betas=[0.9,2]", "betas must be in [0, 1)"),
        ("schedule.warmup_updates=-5", "schedule: xlm_train.training.schedule.inverse_sqrt: its rate of update"),
        ("schedule.warmup_updates=many", "schedule.warmup_updates=many: must be a number"),
        ("objective._target_=nowhere.X", "objective._target_=nowhere.X: there is no such class"),
        ("objective=mlm objective.mask_share=2", "objective.mask_share=2"),
        ("objective=mlm objective.mask_share=nan", "objective.mask_share=nan: must be finite"),
        ("callbacks.metrics.every_n_steps=0", "callbacks.metrics.every_n_steps=0: must be at least 1"),
        ("callbacks.metrics.every_n_steps=inf", "callbacks.metrics.every_n_steps=inf: must be finite"),
        ("callbacks.checkpointing.keep_last=many", "callbacks.checkpointing.keep_last=many: must be a whole number"),
        ("callbacks.validation.monitor=val/acu", "callbacks.validation.monitor=val/acu: must be one of val/ppl"),
        ("+callbacks.mine=5", "callbacks.mine=5: must be a mapping or null"),
        ("+callbacks.mine._target_=no.Such", "callbacks.mine._target_=no.Such: there is no such class"),
        ("+callbacks.mine._target_=torch.nn.Linear", "is no Callback of pytorch_lightning"),
        ("+callbacks.mine._target_=pytorch_lightning.callbacks.BatchSizeFinder", "cannot work here"),
        ("+logger.mine._target_=torch.nn.Linear", "is no Logger of pytorch_lightning"),
        ("debug.nan_steps=[a]", "debug.nan_steps=['a']: must be a list of whole numbers"),
        ("init_optimizer=perhaps", "init_optimizer=perhaps: must be true or false"),
        # combinations that cannot work
        ("model.n_heads=3", "model.n_heads=3 does not divide model.dim=32; model.n_heads=2 would"),
        ("model.dropout=1.5", "model.dropout=1.5 must be in [0, 1)"),
        ("data.bptt=1", "data.bptt=1: a window needs at least 2 tokens"),
        ("data.bptt=65", "data.bptt=65 is longer than model.max_positions=64"),
        ("data.lang_alpha=2", "data.lang_alpha=2: must be from 0 (uniform) to 1 (proportional)"),
        ("trainer.devices=0", "trainer.devices=0: must be at least 1"),
        ("trainer.devices=3", "3 processes, but data.slots=2"),
        ("trainer.sharding=zero", "trainer.sharding=zero: there is one process"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: must be one of auto, cpu, gpu"),
        ("trainer.accelerator=gpu", "trainer.accelerator=gpu: this PyTorch sees no GPU"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed on a CPU would be slow"),
        ("init_optimizer=true", "init_optimizer=true: there is no checkpoint to take it from"),
        ("init_encoder=runs/first", "only a translation model has two sides, as under objective=umt"),
        ("init_from=runs/first init_encoder=runs/first", "init_from=runs/first gives both sides their weights"),
        ("objective=mt", "has no parallel text train.de-en"),
        # files, folders and names
        ("init_from=nowhere.pt", "init_from=nowhere.pt: there is no such file or folder"),
        ("objective=ae init_encoder=nowhere.pt", "init_encoder=nowhere.pt: there is no such file or folder"),
        ("data.path=nowhere", "data.path=nowhere: there is no such folder; xlm-prep makes one"),
        ("data.path='no where/grün, a=b'", "data.path=no where/grün, a=b: there is no such folder"),
        ("data.path=text.en", "data.path=text.en: there is no such folder"),
        ("data.path=folder", "data.path=folder: no manifest.json in it: not a binarised corpus"),
        (f"data.path={LONG}", "has a name of 300 bytes; files and folders have at most 255"),
        ("data.path='${nowhere}'", "data.path: Interpolation key 'nowhere' not found"),
        (f"run_name={LONG}", "has a name of 300 bytes"),
        ("run_name=../up", "run_name=../up: use letters, digits and"),
        ("'run_name=a b'", "run_name=a b: use letters, digits and"),
        ("run_name=/tmp", "run_name=/tmp: use letters, digits and"),
        ("run_name=", "run_name has no value"),
        ("run_name=5", "run_name=5: must be text; quote it"),
        ("run_name=first/checkpoints", "run_name=first/checkpoints: runs/first is a run"),
        ("run_name=first/a/b", "run_name=first/a/b: runs/first is a run"),
        ("run_name=first optimizer.lr=5", "optimizer.lr: was 0.001, now 5"),
        ("run_name=unreadable", "runs/unreadable/config.yaml: is damaged"),
        ("run_name=unreadable trainer.precision=auto", "runs/unreadable/config.yaml: is damaged"),
        ("run_name=listed", "runs/listed/status.json: is damaged"),
        ("paths.runs=text.en", "paths.runs: text.en/new cannot be made: Not a directory"),
        ("paths.runs=/proc", "paths.runs: /proc/new cannot be made"),
        ("paths.runs=ftp://host/runs", "paths.runs=ftp://host/runs: ftp:// is not supported to write to"),
        ("paths.runs=s3://", "paths.runs=s3://: is no URL of a folder or object"),
        ("'data.path=[a'", "data.path=[a: not a valid override"),
    ),
    *of(
        "xlm-train",
        ("verify=nowhere", "verify=nowhere: there is no such folder"),
        ("verify=text.en", "verify=text.en: there is no such folder"),
        ("verify=folder", "verify=folder: there is no step-*.pt in it"),
        ("verify=", "verify=: there is no such folder"),
        (f"verify={LONG}", "has a name of 300 bytes"),
    ),
    Mistake(f"{TRAIN} model.ffn_dim=100000000000", "this run cannot fit into memory", status=71),
    Mistake(f"{TRAIN} logger=wandb", "pip install 'xlm_train[wandb]'", without="wandb"),
    Mistake(f"{TRAIN} logger=tensorboard", "pip install 'xlm_train[tensorboard]'", without="tensorboard"),
    Mistake(f"{TRAIN} data.path=s3://bucket/corpus", "pip install 'xlm_train[s3]'", without="s3fs"),
    Mistake(f"{TRAIN} paths.runs=s3://bucket/runs", "pip install 'xlm_train[s3]'", without="s3fs"),
    Mistake(f"{TRAIN} init_from=text.en", "text.en: does not end as a checkpoint", leaves="runs/new"),
    Mistake(f"{TRAIN} init_from=runs/first model.dim=64", "set model.dim=32", leaves="runs/new"),
    Mistake(TRAIN, "cannot be written: File too large", leaves="runs/new", file_bytes=100),
]

SWEEPS = list(
    of(
        SWEEP,
        ("data.slots=2,0", "data.slots=0: must be at least 1"),
        ("data.slots=2,two", "data.slots=two: must be a whole number"),
        ("model=tiny,gpt", "model has no option 'gpt'"),
        ("objective=clm,mt", "has no parallel text train.de-en"),
        ("run_name=a,b", "run_name=a,b: one sweep has one run_name"),
        ("hydra/launcher=slurm seed=1,2", "hydra/launcher=slurm: there is no srun on this machine"),
        ("'hydra.sweeper.params.seed=choice(1,2)'", "what is Hydra's own cannot vary"),
        ("hydra/launcher=basic,joblib", "what is Hydra's own cannot vary"),
        ("'optimizer.lr=interval(1e-4,1e-3)'", "only a search draws from an interval"),
        ("'seed=choice(1,2'", "seed=choice(1,2: not a valid override"),
        ("seed=1,2 run_name=", "run_name='': use letters"),
        (f"seed=1,2 cluster.name=a,{LONG[:250]}", "has 269 bytes; a folder's name has at most 255"),
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
        ("checkpoint=binary.txt", "binary.txt: does not end as a checkpoint of xlm_train"),
        ("checkpoint=empty.txt", "empty.txt: 0 bytes: not a checkpoint"),
        (f"checkpoint={LONG}", "has a name of 300 bytes"),
        ("checkpoint=", "checkpoint has no value"),
        ("checkpoint=5", "checkpoint=5: must be text; quote it"),
        ("checkpoint=[runs/first]", "checkpoint=['runs/first']: must be text"),
        ("checkpoint='no süßes, a=b.pt'", "checkpoint=no süßes, a=b.pt: there is no such file"),
        ("checkpoint=hf://model", "hf://model: is no URL of a folder or object"),
    ),
    *of(
        SCORE,
        ("split=tst", "split=tst: must be one of train, valid, test"),
        ("batch_tokens=0", "batch_tokens=0: must be at least 1"),
        ("bptt=1", "bptt=1: must be from 2 to 64"),
        ("bptt=999", "bptt=999: must be from 2 to 64"),
        ("beam=5", "is a language model: nothing is translated"),
        ("beam=many", "beam=many: must be a whole number"),
        ("length_penalty=nan", "length_penalty=nan: must be finite"),
        ("device=gpu", "device=gpu: must be one of auto, cpu, cuda"),
        ("device=cuda", "device=cuda: this PyTorch sees no GPU"),
        ("threads=0", "threads=0: must be at least 1"),
        ("baselines=maybe", "baselines=maybe: must be true or false"),
        ("out=folder", "out=folder: is a folder; give a file"),
        ("out=text.en/x.json", "out=text.en/x.json: text.en is no folder"),
        ("out=nowhere/x.json", "out=nowhere/x.json: nowhere is no folder"),
        ("out=/proc/x.json", "out=/proc/x.json: /proc is not writable"),
        ("out=/dev/null", "out=/dev/null: is a device or pipe"),
        ("out=", "out has no value"),
        ("text.en=text.en", "text.LANGUAGE=FILE for raw text: one of them"),
    ),
    *of(
        EVAL,
        ("split=test", "give data.path=FOLDER for a corpus"),
        ("data.path=nowhere", "data.path=nowhere: there is no such folder"),
        ("data.path=text.en", "data.path=text.en: there is no such folder"),
        ("text=text.en", "text=text.en: must be a mapping"),
        ("text.en=nowhere.txt", "text.en=nowhere.txt: there is no such file"),
        ("text.en=folder", "text.en=folder: is a folder; give a text file"),
        ("text.en=binary.txt", "text.en=binary.txt: is binary, not UTF-8 text"),
        ("text.en=empty.txt", "text.en=empty.txt: is empty"),
        ("text.en=packed.gz", "text.en=packed.gz: is named .gz but is not such a file"),
        ("text.en=5", "text.en=5: must be text"),
        ("text.fr=text.en", "text.fr=text.en: "),
        ("text.en=text.en baselines=true", "baselines=true needs a corpus with a train split"),
        ("text.en=latin.txt out=scores.json", "latin.txt:2: is not UTF-8"),
    ),
    Mistake(f"{SCORE} out=scores.json", "scores.json: cannot be written: File too large", file_bytes=100),
    Mistake(
        f"{SCORE} out=scores.json", "standard output: cannot be written: No space left", stdout="/dev/full", apart=True
    ),
    Mistake("xlm-eval checkpoint=s3://b/x data.path=corpus", "pip install 'xlm_train[s3]'", without="s3fs"),
]

GENERATION = [
    Mistake("xlm-generate", "lang has no value: give lang=..."),
    *of(
        CONTINUE,
        ("temperature=nan", "temperature=nan: must be finite"),
        ("temperature=inf", "temperature=inf: must be finite"),
        ("temperature=-1", "temperature=-1: must be 0 (greedy) or positive"),
        ("temperature=hot", "temperature=hot: must be a number"),
        ("top_k=-1 temperature=1", "top_k=-1: must be 0 (all words) or positive"),
        ("top_k=5", "set temperature=1 to sample"),
        ("top_p=0 temperature=1", "top_p=0: must be above 0 and at most 1"),
        ("num_samples=2", "num_samples=2: temperature=0 gives the same text each time"),
        ("max_tokens=0", "max_tokens=0: must be at least 1"),
        ("max_tokens=many", "max_tokens=many: must be a whole number"),
        ("seed=-1 temperature=1", "seed=-1: must not be negative"),
        ("batch_texts=0", "batch_texts=0: must be at least 1"),
        ("stop_at_eos=perhaps", "stop_at_eos=perhaps: must be true or false"),
        ("threads=0", "threads=0: must be at least 1"),
        ("threads=-1", "threads=-1: must be at least 1"),
        ("bptt=999", "bptt=999: must be from 2 to 64"),
        ("lang=fr", "lang=fr: runs/first/checkpoints/best.pt knows the languages de, en"),
        ("lang=", "lang has no value"),
        ("checkpoint=runs/translator", "is a translation model, where a language model is needed"),
        ("checkpoint=runs", "checkpoint=runs: is a folder without checkpoints"),
        ("prompts_file=text.en", "give prompt='...' or prompts_file=FILE, one of them"),
        ("out=text.en/x.jsonl", "out=text.en/x.jsonl: text.en is no folder"),
        ("out=/dev/null", "out=/dev/null: is a device or pipe"),
        (f"out={LONG}", "has a name of 300 bytes"),
    ),
    *of(
        GENERATE,
        ("seed=1", "give prompt='...' or prompts_file=FILE, one of them"),
        ("prompts_file=nowhere.txt", "prompts_file=nowhere.txt: there is no such file"),
        ("prompts_file=folder", "prompts_file=folder: is a folder; give a text file"),
        ("prompts_file=binary.txt", "prompts_file=binary.txt: is binary, not UTF-8 text"),
        ("prompts_file=empty.txt", "prompts_file=empty.txt: is empty"),
        ("prompts_file=latin.txt", "latin.txt:2: is not UTF-8"),
    ),
    Mistake(f"{CONTINUE} out=texts.jsonl", "texts.jsonl: cannot be written: File too large", file_bytes=10),
    Mistake(CONTINUE, "standard output: cannot be written: No space left", stdout="/dev/full"),
]

TRANSLATION = [
    Mistake("xlm-translate", "src has no value: give src=..."),
    *of(
        f"{TRANSLATE} text=The",
        ("src=fr", "src=fr: runs/translator/checkpoints/best.pt knows the languages de, en"),
        ("tgt=fr out=new.de", "tgt=fr: "),
        ("src=de", "src=de tgt=de: give two languages"),
        ("file=text.en", "give text='...' or file=FILE, not both"),
        ("beam=0", "beam=0: must be at least 1"),
        ("beam=2 temperature=1", "beam=2 searches, temperature=1 draws"),
        ("temperature=inf", "temperature=inf: must be finite"),
        ("length_penalty=-inf", "length_penalty=-inf: must be finite"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("batch_tokens=0", "batch_tokens=0: must be at least 1"),
        ("block_lines=none", "block_lines=none: must be a whole number"),
        ("threads=0", "threads=0: must be at least 1"),
        ("checkpoint=runs/first", "is a language model, where a translation model is needed"),
        ("checkpoint=nowhere", "checkpoint=nowhere: there is no such file"),
        ("out=folder", "out=folder: is a folder; give a file"),
        ("out=/dev/null", "out=/dev/null: is a device or pipe"),
    ),
    *of(
        TRANSLATE,
        ("file=nowhere.en", "file=nowhere.en: there is no such file"),
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
        ("format=onnx", "format=onnx: must be one of hf, xlm"),
        ("data.path=corpus", "give checkpoint=FILE for a model, or data.path=FOLDER for a corpus: one of them"),
        ("checkpoint=nowhere.pt", "checkpoint=nowhere.pt: there is no such file"),
        ("checkpoint=null", "give checkpoint=FILE for a model"),
        ("checkpoint=folder", "checkpoint=folder: is a folder without checkpoints"),
        ("lang=en format=xlm", "lang=en: of pipelines of transformers (format=hf)"),
        ("lang=en", "lang=en: only folders of masked models"),
        ("codes=nowhere", "codes=nowhere: there is no such file"),
        ("codes=binary.txt", "binary.txt: not UTF-8"),
        ("codes=text.en", "not a `left right count` line of fastBPE"),
        ("evaluation=nowhere", "evaluation=nowhere: there is no such file"),
        ("evaluation=text.en", "text.en: is not valid JSON"),
        ("evaluation=mine/list.json", "evaluation=mine/list.json: is not a result of xlm-eval"),
        ("sample.en=nowhere", "sample.en=nowhere: there is no such file"),
        ("sample.en=folder", "sample.en=folder: is a folder; give a text file"),
        ("sample.fr=text.en", "sample.fr: the checkpoint knows the languages de, en"),
        ("sample.en=binary.txt", "sample.en=binary.txt: is binary, not UTF-8 text"),
        ("sample=text.en", "sample=text.en: must be a mapping"),
        ("optimizer=maybe", "optimizer=maybe: must be true or false"),
        ("card.watts=nan", "card.watts=nan: must be finite"),
        ("card.watts=-5", "card.watts=-5: must be at least 0"),
        ("card.autors=me", "there is no 'card.autors' (did you mean card.authors?)"),
        ("out=runs", "out=runs: is not empty and no earlier export"),
        ("out=text.en", "out=text.en: is a file; give a folder"),
        ("out=text.en/x", "out=text.en/x: cannot be written: Not a directory"),
        ("out=/proc/x", "out=/proc/x: cannot be written"),
        ("out=/dev/null", "out=/dev/null: is a file; give a folder"),
        ("out=.", "out=.: give the name of a folder to make"),
        ("out=", "out has no value"),
        (f"out={LONG}", "has a name of 300 bytes"),
        ("out=ftp://host/x", "out=ftp://host/x: ftp:// is not supported"),
    ),
    *of(
        "xlm-export out=new",
        ("data.path=corpus", "data.path: a corpus can only be exported with format=xlm"),
        ("data.path=nowhere format=xlm", "data.path=nowhere: there is no such folder"),
        ("data.path=folder format=xlm", "data.path=folder: no manifest.json in it"),
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
        ("file=text.en", "text.en: "),
        ("file=binary.txt", "binary.txt: "),
        ("file=empty.txt", "empty.txt: "),
        ("file=folder", "file=folder: has neither a config.json (transformers) nor"),
        ("file=mine", "file=mine: has neither a config.json (transformers) nor"),
        ("file=strange", "strange/config.json: "),
        ("file=", "file has no value"),
        (f"file={LONG}", "has a name of 300 bytes"),
        ("file=text.en codes=nowhere", "codes=nowhere: there is no such file"),
        ("file=text.en codes=folder", "codes=folder: there is no such file"),
        ("file=text.en codes=binary.txt", "binary.txt: not UTF-8"),
        ("file=text.en bptt=1", "bptt=1: a window needs at least 2 tokens"),
        ("file=text.en bptt=long", "bptt=long: must be a whole number or null"),
        ("file=text.en evaluation=both", "evaluation=both: must be null or one of causal, masked"),
        ("file=text.en vocab_multiple=0", "vocab_multiple=0: must be at least 1"),
        ("file=text.en languages=de", "languages=de: must be a list, as [a,b]"),
        ("file=text.en split=5", "split=5: must be text"),
        ("file=text.en out=runs", "out=runs: is there already; give another folder"),
        ("file=text.en out=text.de", "out=text.de: is there already"),
        ("file=text.en out=.", "out=.: give the name of a folder to make"),
        ("file=text.en out=", "out has no value"),
    ),
]

PREPARATION = [
    Mistake("xlm-prep", "out has no value: give out=..."),
    Mistake("xlm-prep out=new", "no text is given: train.LANG=[FILE, ...] for each language", apart=True),
    *of(
        "xlm-prep out=new train.de=text.de",
        ("train=text.en", "train=text.en: which language? give train.en=..."),
        ("train.en=nowhere.txt", "train.en: nowhere.txt: there is no such file"),
        ("train.en=folder", "train.en: folder: is a folder with no text known here"),
        ("train.en=texts", "texts: is a folder; its text files are 'texts/*.txt'"),
        ("train.en=binary.txt", "train.en: binary.txt: is binary, not UTF-8 text"),
        ("train.en=empty.txt", "train.en: empty.txt: is empty"),
        ("train.en=packed.gz", "train.en: packed.gz: is named .gz but is not such a file"),
        ("train.en=archive.zip", "train.en: archive.zip: is an archive"),
        ("train.en=text.de", "text.de is given twice"),
        ("train.en=[]", "train.en: names no input"),
        ("train.en=", "train.en: '' is no input"),
        ("train.en=5", "train.en: 5 is no input"),
        ("train.en='*.nope'", "train.en: *.nope: no file has such a name"),
        ("'train.en={path: text.en}'", "is no input: give {path: FILE.parquet, column: NAME}"),
        (f"train.en={LONG}", "has a name of 300 bytes"),
        (f"train.en=[text.en,{LONG}]", "has a name of 300 bytes"),
        ("train.english=text.en", "'english' is not a language code"),
        ("valid.en=text.en", "train.en: is not given"),
        ("pairs=[text.de,text.en]", "pairs is no list"),
        ("pairs.de-en=text.en", "which pair and split?"),
        ("pairs.de.train=text.en", "pairs.de: is not two different language codes"),
        ("pairs.de-en.trn=text.en", "pairs.de-en.trn: there is no split 'trn' (did you mean train"),
        ("pairs.de-en.train=text.en", "text.en: line 1 has 1 columns, not two"),
        ("pairs.de-en.train=[text.en,text.en]", "text.en: is both sides of the pair"),
        ("corpus=news", "corpus has no option 'news' (did you mean news_crawl_ende?)"),
    ),
    *of(
        PREP,
        ("bpe.n_codes=0", "bpe.n_codes=0: must be a whole number from 1"),
        ("bpe.n_codes=many", "bpe.n_codes=many: must be a whole number"),
        ("bpe.engine=magic", "bpe.engine=magic: must be one of tokenizers, fastbpe"),
        ("bpe.sample=some", "bpe.sample=some: must be one of alpha, all"),
        ("bpe.alpha=nan", "bpe.alpha=nan: must be finite"),
        ("bpe.alpha=-1", "bpe.alpha=-1: must be a number from 0 to 10"),
        ("bpe.vocab_limit=[tst]", "bpe.vocab_limit=tst: must be among train, valid, test"),
        ("bpe=5", "bpe=5: has fields"),
        ("codes=nowhere", "codes: nowhere: cannot be read: No such file or directory"),
        ("codes=folder", "codes: folder: cannot be read: Is a directory"),
        ("codes=binary.txt", "codes: binary.txt: not UTF-8"),
        ("codes=text.en", "codes: text.en:1: not a `left right count` line of fastBPE"),
        ("vocab=text.en", "vocab=text.en: needs the codes it was made with (codes=FILE)"),
        ("language_vocab=5", "language_vocab=5: must be a mapping"),
        ("language_vocab.en=text.en", "language_vocab.de: is not given, but another language's is"),
        ("decode_errors=ignore", "decode_errors=ignore: must be one of replace, stop"),
        ("holdout.sentences=0", "holdout.sentences=0: must be a whole number from 1"),
        ("holdout.sentences=100000", "holdout.sentences"),
        ("workers=0", "workers=0: must be a whole number from 1"),
        ("workers=1.5", "workers=1.5: must be a whole number or null"),
        ("executor=cloud", "executor=cloud: must be one of processes, local, slurm"),
        ("seed=-1", "seed=-1: must be a whole number from 0"),
        ("shard_tokens=0", "shard_tokens=0: must be a whole number from 1"),
        ("overwrite=perhaps", "overwrite=perhaps: must be true or false"),
        ("parallel=[train]", "parallel=train: train cannot be parallel text"),
        ("out=text.en", "out=text.en: is a file; name a folder"),
        ("out=text.en/x", "out=text.en/x: cannot be made: text.en"),
        ("out=/proc/x", "out=/proc/x: cannot be made"),
        ("out=", "out has no value"),
        ("out=foreign", "out=foreign: holds codes from elsewhere, to be overwritten"),
    ),
    Mistake(f"{PREP} executor=local", "pip install 'xlm_train[datatrove]'", without="datatrove"),
    Mistake(f"{PREP} 'train.en={{dataset: nowhere}}'", "pip install 'xlm_train[hub]'", without="datasets"),
]

REPORTS = [
    Mistake("xlm-report", "run_name has no value: give run_name=..."),
    *of(
        "xlm-report",
        ("run_name=nowhere", "run_name=nowhere: there is no run of that name in runs; there are"),
        ("run_name=frist", "there is no run of that name in runs; did you mean first"),
        (f"run_name={LONG}", "has a name of 300 bytes"),
        ("run_name=", "run_name has no value"),
        ("run_name=first paths.runs=nowhere", "paths.runs=nowhere: there is no such folder"),
        ("run_name=first paths.runs=text.en", "paths.runs=text.en: there is no such folder"),
        ("run_name=first compare=first", "compare=first: must be a list, as [a,b]"),
        ("run_name=first compare=[first]", "compare=first: is named twice"),
        ("run_name=first compare=[nowhere]", "compare=nowhere: there is no run of that name"),
        ("run_name=blocked", "runs/blocked/plots: cannot be made: File exists"),
    ),
    Mistake("xlm-report run_name=first", "curves.png: cannot be written: File too large", file_bytes=100),
]

PLANS = [
    *of(
        PLAN,
        ("cluster=cloud", "cluster has no option 'cloud'"),
        ("plan.epochs=2", "plan.epochs needs a corpus to count: give data.path=CORPUS"),
        ("plan.epochs=2 plan.tokens=5", "plan.tokens and plan.epochs both say how long to train"),
        ("plan.tokens=0", "plan.tokens=0: must be positive"),
        ("plan.tokens=all", "plan.tokens=all: must be a whole number or null"),
        ("plan.region=atlantis", "plan.region=atlantis: must be one of"),
        ("plan.pue=0", "plan.pue=0: must be at least 1"),
        ("plan.efficiency=2", "plan.efficiency=2: is a share of the peak"),
        ("plan.efficiency=nan", "plan.efficiency=nan: must be finite"),
        ("plan.probe=true", "plan.probe=true measures this machine's CPU"),
        ("plan=5", "plan=5: has fields"),
        ("~plan", "plan has no value"),
        ("~cluster", "cluster has no value"),
        ("~trainer", "trainer.max_steps has no value"),
        ("cluster.nodes=0", "cluster.nodes=0: must be at least 1"),
        ("cluster.peak_tflops=5", "cluster.peak_tflops"),
        ("data.slots=1", "has 8 devices, but data.slots=1"),
        ("data.slots=two", "data.slots=two: must be a whole number"),
        ("data.path=nowhere", "data.path=nowhere: there is no such folder"),
        ("data.path=5", "data.path=5: must be text"),
        ("data.path=folder", "data.path=folder: no manifest.json in it"),
        ("model.n_heads=3", "model.n_heads=3 does not divide model.dim=32"),
        ("trainer.precision=[a]", "trainer.precision=['a']: must be text"),
        ("callbacks.checkpointing=null", "callbacks.checkpointing=null: a plan counts what checkpoints cost"),
        ("out=text.en", "out=text.en: text.en is no folder"),
        ("out=text.en/x", "out=text.en/x: text.en is no folder"),
        ("out=/proc/x", "out=/proc/x: /proc is not writable"),
        ("out=5", "out=5: must be text or null"),
        ("out=", "out has no value"),
    ),
    Mistake(f"{PLAN} out=new", "cannot be written: File too large", file_bytes=100),
    Mistake(PLAN, "standard output: cannot be written: No space left", stdout="/dev/full"),
]

TABLE = [
    *EVERYWHERE, *FLAGS, *TRAINING, *SWEEPS, *EVALUATION, *GENERATION, *TRANSLATION, *EXPORTS, *IMPORTS, *PREPARATION,
    *REPORTS, *PLANS,
]  # fmt: skip
