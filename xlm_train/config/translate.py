"""What configs/translate.yaml says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from xlm_train.config.files import checkpoint_problems, out_problems, overwriting_problems
from xlm_train.config.schema import Beams, Count, Device, Threads, at_least, free_text, search_problems
from xlm_train.runtime.files import ResumableLines


@dataclass
class TranslateConfig:
    """configs/translate.yaml."""

    checkpoint: str
    src: str
    tgt: str
    text: Annotated[str | None, free_text]
    file: str | None
    out: str | None
    beam: Beams
    length_penalty: float
    early_stopping: bool
    temperature: Annotated[float, at_least(0)]
    seed: Annotated[int, at_least(0)]
    batch_tokens: Count
    block_lines: Count
    device: Device
    threads: Threads

    def __post_init__(self) -> None:
        from xlm_train.runtime.run_store import local_checkpoint
        from xlm_train.text.reader import STANDARD_INPUT

        self.checkpoint = str(local_checkpoint(self.checkpoint))
        if self.file in STANDARD_INPUT and self.text is None:
            self.file = None  # which is what is read then

    def problems(self) -> list[str]:
        """List what is wrong with the values, as far as the beginnings of files tell."""
        from xlm_train.text.reader import file_problems

        problems = out_problems(self.out) + checkpoint_problems(self.checkpoint)
        if self.text is not None and self.file is not None:
            problems.append("give text='...' or file=FILE, not both")
        if self.beam > 1 and self.temperature > 0:
            problems.append(f"beam={self.beam} searches, temperature={self.temperature} draws: give one of them")
        problems += search_problems(self.beam, self.length_penalty, self.early_stopping)
        if self.seed and not self.temperature:
            problems.append(f"seed={self.seed}: has no effect without draws: temperature=1")
        if self.out is not None:
            written = [Path(self.out), *ResumableLines.working_files(self.out)]
            problems += overwriting_problems(self.out, written, {"file": self.file, "checkpoint": self.checkpoint})
        if self.src == self.tgt:
            problems.append(f"src={self.src} tgt={self.tgt}: give two languages")
        if self.file is not None:
            problems += [f"file={problem}" for problem in file_problems(self.file)]
        return problems
