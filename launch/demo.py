"""`make demo`: the main job, whole, on real text. Every step is a command a user could type; each is shown."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.demo_text import ATTRIBUTION, write_demo_text
from xlm_train.runtime.console import compact, duration
from xlm_train.runtime.errors import UserError
from xlm_train.runtime.files import read_json
from xlm_train.training.loggers import read_metrics

FOLDER = Path("demo")
PROMPTS = {"en": "a person who", "de": "eine Person, die"}
N_CODES = 1000


def run(*words: str | Path) -> None:
    """Show and run a command of this project. Stops where it fails."""
    shown = " ".join(f"'{word}'" if set(str(word)) & set(" []'\"") else str(word) for word in words)
    print(f"\n$ {shown}", flush=True)
    program = Path(sys.executable).parent / str(words[0])
    result = subprocess.run([str(program), *map(str, words[1:])], check=False)
    if result.returncode:
        sys.exit(f"demo: {words[0]} failed with status {result.returncode}")


def published_snippet(folder: Path) -> str:
    """What the published model's card tells users to do, on the exported folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import XLMTokenizer, XLMWithLMHeadModel

    tokenizer = XLMTokenizer.from_pretrained(folder)
    model = XLMWithLMHeadModel.from_pretrained(folder)
    input_ids = torch.tensor([tokenizer.encode("Wikipedia was used to")])
    language_id = tokenizer.lang2id["en"]
    langs = torch.tensor([[language_id] * input_ids.shape[1]])
    with torch.no_grad():
        outputs = model(input_ids, langs=langs)
    return f'{input_ids.shape[1]} ids, lang2id["en"] = {language_id}, logits {tuple(outputs.logits.shape)}'


def main() -> None:
    argparse.ArgumentParser(prog="python launch/demo.py", description=f"{__doc__} Works in ./{FOLDER}.").parse_args()
    start = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    print(f"Real text, extracted into {FOLDER}/text:\n{ATTRIBUTION}", flush=True)
    (FOLDER / "text").mkdir(exist_ok=True)
    text = write_demo_text(FOLDER / "text")

    corpus, run_folder, export = FOLDER / "corpus", FOLDER / "runs" / "demo", FOLDER / "export"
    best = run_folder / "checkpoints" / "best.pt"
    run(
        "xlm-prep",
        f"out={corpus}",
        f"train.en={text['en']}",
        f"train.de={text['de']}",
        f"bpe.n_codes={N_CODES}",
        "deduplicate=true",
    )
    run("xlm-train", "experiment=demo", f"data.path={corpus}", f"paths.runs={FOLDER / 'runs'}", "run_name=demo")
    evaluation = run_folder / "evaluation.json"
    run("xlm-eval", f"checkpoint={best}", f"data.path={corpus}", "split=test", "baselines=true", f"out={evaluation}")
    run("xlm-export", f"checkpoint={best}", f"out={export}", "format=hf", f"evaluation={evaluation}")
    print(f"\nThe published model card's snippet on {export}: {published_snippet(export)}", flush=True)
    for language, prompt in PROMPTS.items():
        run(
            "xlm-generate",
            f"checkpoint={best}",
            f"lang={language}",
            f"prompt={prompt}",
            "max_tokens=30",
            "temperature=0.7",
            f"out={run_folder / f'generated.{language}.jsonl'}",
        )
    run("xlm-report", "run_name=demo", f"paths.runs={run_folder.parent}")  # again, with the scores and the texts

    print(f"\n{'=' * 100}\nDone in {duration(time.monotonic() - start)}.\n")
    summary(read_json(evaluation), run_folder)
    print(
        f"\n  corpus       {corpus}\n  run          {run_folder}: report.html, plots/curves.png, metrics.jsonl\n"
        f"  checkpoint   {best}\n  evaluation   {evaluation}\n  transformers {export}"
    )


def summary(evaluation: dict[str, Any], run_folder: Path) -> None:
    """Perplexities against the baselines on the same targets, and the speed of training."""
    print("  perplexity on the test split (same tokens, same targets):")
    print(f"  {'':10}{'model':>10}{'unigram':>10}{'bigram':>10}   model is below the unigram by")
    for language, scores in evaluation["languages"].items():
        model, unigram, bigram = (scores[name] for name in ("perplexity", "unigram_perplexity", "bigram_perplexity"))
        print(f"  {language:10}{model:10.1f}{unigram:10.1f}{bigram:10.1f}   {unigram / model:.1f} times")
    lines = [line for line in read_metrics(run_folder / "metrics.jsonl") if "train/loss" in line]
    rates = sorted(line["speed/tokens_per_second"] for line in lines)
    if rates:
        print(
            f"\n  training     {compact(lines[-1]['progress/tokens'])} tokens, median {rates[len(rates) // 2]:,.0f} tokens/s"
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"demo: error: {error}")
