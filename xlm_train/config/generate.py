"""What configs/generate.yaml says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from xlm_train.config.files import checkpoint_problems, out_problems, overwriting_problems
from xlm_train.config.schema import Count, Device, Threads, between, free_text
from xlm_train.model.decoding import Sampling


@dataclass
class GenerateConfig:
    """configs/generate.yaml."""

    checkpoint: str
    lang: str
    prompt: Annotated[str | None, free_text]
    prompts_file: str | None
    max_tokens: Count
    num_samples: Annotated[int, between(1, 10**6)]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_at_eos: bool
    stop: str | list[str] | None
    logprobs: bool
    batch_texts: Annotated[int, between(1, 10**6)]
    out: str | None
    bptt: int | None
    device: Device
    threads: Threads

    def __post_init__(self) -> None:
        from xlm_train.runtime.run_store import local_checkpoint

        self.checkpoint = str(local_checkpoint(self.checkpoint))

    @property
    def sampling(self) -> Sampling:
        """How the next word is chosen."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def problems(self) -> list[str]:
        """List what is wrong with the values, as far as the beginnings of files tell."""
        from xlm_train.text.reader import file_problems

        problems = self.sampling.problems() + out_problems(self.out) + checkpoint_problems(self.checkpoint)
        if self.out is not None:
            inputs = {"prompts_file": self.prompts_file, "checkpoint": self.checkpoint}
            problems += overwriting_problems(self.out, [Path(self.out)], inputs)
        if self.prompts_file is not None:
            problems += [f"prompts_file={problem}" for problem in file_problems(self.prompts_file)]
        if self.seed and not self.temperature:
            problems.append(f"seed={self.seed}: has no effect without draws: temperature=1")
        if "" in self.stops:
            problems.append("stop='': every text would end before it begins; give a letter at least, or stop=null")
        if (self.prompt is None) == (self.prompts_file is None):
            problems.append("give prompt='...' or prompts_file=FILE, one of them")
        if self.num_samples > 1 and self.temperature == 0:
            problems.append(
                f"num_samples={self.num_samples}: temperature=0 gives the same text each time; set temperature=1"
            )
        return problems
