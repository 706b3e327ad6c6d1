"""What configs/eval.yaml says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from xlm_train.config.files import DataPath, checkpoint_problems, out_problems, overwriting_problems
from xlm_train.config.schema import Beams, Count, Device, Threads, one_of, search_problems
from xlm_train.runtime.files import beside


@dataclass
class EvalConfig:
    """configs/eval.yaml."""

    checkpoint: str
    data: DataPath
    split: Annotated[str, one_of("train", "valid", "test")]
    baselines: bool
    text: dict[str, str]
    bptt: int | None
    batch_tokens: Count
    beam: Beams
    length_penalty: float
    out: str | None
    device: Device
    threads: Threads

    def __post_init__(self) -> None:
        from xlm_train.runtime.run_store import local_checkpoint

        self.checkpoint = str(local_checkpoint(self.checkpoint))

    def problems(self) -> list[str]:
        """List what is wrong with the values, as far as the beginnings of files tell."""
        from xlm_train.text.reader import file_problems

        problems = out_problems(self.out) + checkpoint_problems(self.checkpoint)
        problems += search_problems(self.beam, self.length_penalty)
        if (self.data.path is None) == (not self.text):
            problems.append("give data.path=FOLDER for a corpus, or text.LANGUAGE=FILE for raw text: one of them")
        if self.text and self.baselines:
            problems.append("baselines=true needs a corpus with a train split: give data.path instead of text")
        if self.out is not None:
            ends = [f"{code}.jsonl" for code in self.text] + [f"{a}-{b}.txt" for a in self.text for b in self.text]
            written = [Path(self.out), *(beside(Path(self.out), end) for end in ends)]
            inputs = {"checkpoint": self.checkpoint, **{f"text.{code}": file for code, file in self.text.items()}}
            problems += overwriting_problems(self.out, written, inputs)
        return problems + [
            f"text.{code}={problem}" for code, file in self.text.items() for problem in file_problems(file)
        ]
