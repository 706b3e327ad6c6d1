"""Generation against the plain definition: the whole text read again for each word, no cache, no batch."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import process_environment
from xlm_train.commands.generate import main
from xlm_train.model.continuation import Continuation, continue_by_words, continue_texts
from xlm_train.model.decoding import CachedTexts, Sampling, choose, next_words, window_start
from xlm_train.model.pretrained import TrainedModel, open_checkpoint
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import ConfigError

EOS = 1


@pytest.fixture(scope="module")
def model() -> XLM:
    torch.manual_seed(5)
    model = XLM(ModelShape(n_words=50, dim=24, n_layers=3, n_heads=3, ffn_dim=48, max_positions=32, vocab_multiple=8))
    for parameter in model.parameters():  # larger than the usual initial weights: greedy texts that do not just repeat
        parameter.data += 0.4 * torch.randn_like(parameter)
    return model.eval()


def prompts_of(lengths: list[int]) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [[EOS, *random.integers(14, 50, n).tolist()] for n in lengths]


@torch.no_grad()
def next_logits(model: XLM, text: list[int], language: int, context: int) -> torch.Tensor:
    read = text[window_start(len(text), context) :]
    return model.logits(model(torch.tensor([read]), langs=language))[0, -1]


def greedy(model: XLM, prompt: list[int], language: int, n: int, context: int) -> list[int]:
    text = list(prompt)
    for _ in range(n):
        text.append(int(next_logits(model, text, language, context).argmax()))
    return text[len(prompt) :]


def generate(
    model: XLM, prompts: list[list[int]], language: int, max_tokens: int, context: int, sampling: Sampling | None = None,
    sample_numbers: list[int] | None = None, stop_at_eos: bool = True, banned: Sequence[int] = (),
) -> list[list[int]]:  # fmt: skip
    """The new tokens of each prompt."""
    texts: list[list[int]] = [[] for _ in prompts]

    def has_ended(row: int) -> bool:
        return stop_at_eos and texts[row][-1] == EOS

    for words in next_words(
        model, prompts, language, max_tokens, context, has_ended, sampling, sample_numbers, banned
    ):  # fmt: skip
        for row, token, _ in words:
            texts[row].append(token)
    return texts


@pytest.mark.parametrize("context", [1, 2, 7, 12, 31])
def test_cached_greedy_texts_equal_the_plain_ones(model: XLM, context: int) -> None:
    prompts = prompts_of([0, 5, 1, 11, 20])  # some longer than the context before they begin
    found = generate(model, prompts, 1, max_tokens=25, context=context, stop_at_eos=False)
    assert found == [greedy(model, prompt, 1, 25, context) for prompt in prompts]


def test_cached_scores_equal_the_plain_ones(model: XLM) -> None:
    texts, context = prompts_of([0, 9, 4]), 12
    with torch.inference_mode():
        reader = CachedTexts(model, 0, len(texts), context, longest=40)
        for step in range(25):
            if step == 15:  # a text has ended: the others go on in their rows
                reader.keep([0, 2])
                texts = [texts[0], texts[2]]
            found = reader.next_logits(texts)
            expected = torch.stack([next_logits(model, text, 0, context) for text in texts])
            assert (found - expected).abs().max() < 1e-5
            for text in texts:
                text.append(14 + (7 * len(text)) % 36)


def test_window_moves_by_half_a_context() -> None:
    assert [window_start(n, 8) for n in range(1, 18)] == [0] * 8 + [4] * 4 + [8] * 4 + [12]
    assert all(4 <= n - window_start(n, 8) <= 8 for n in range(4, 200))
    assert [window_start(n, 1) for n in range(1, 5)] == [0, 1, 2, 3]


def test_a_text_ends_at_eos_and_the_others_go_on(model: XLM) -> None:
    prompts, sampling = prompts_of([3, 6, 2, 1, 8, 4]), Sampling(temperature=20.0, seed=1)
    whole = generate(model, prompts, 0, 60, 31, sampling, stop_at_eos=False)
    ended = [tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens for tokens in whole]
    assert generate(model, prompts, 0, 60, 31, sampling) == ended
    assert len({len(tokens) for tokens in ended}) > 3
    assert max(map(len, whole)) == min(map(len, whole)) == 60


def test_banned_words_are_never_chosen(model: XLM) -> None:
    prompts = prompts_of([4])
    banned = sorted(set(generate(model, prompts, 0, 20, 31, stop_at_eos=False)[0]))
    found = generate(model, prompts, 0, 20, 31, Sampling(temperature=2.0), stop_at_eos=False, banned=banned)
    assert not set(found[0]) & set(banned)


UNIFORM = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.0, top_k=3),
        Sampling(temperature=1.5, top_p=0.7),
        Sampling(temperature=1.3, top_k=5, top_p=0.6),
        Sampling(temperature=1.0, top_k=100),
        Sampling(temperature=1.0, top_p=1e-9),
    ],
)
def test_words_are_drawn_with_their_probabilities(sampling: Sampling) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.5, 0.9, -3.0, 1.1, float("-inf")])
    probabilities = (logits.double() / sampling.temperature).softmax(0)
    order = probabilities.argsort(descending=True).tolist()
    order = order[: sampling.top_k or None]
    total = probabilities[order].sum()
    kept, reached = [], 0.0
    for word in order:  # words until top_p is reached, the one that reaches it included
        if reached / total < sampling.top_p:
            kept.append(word)
            reached += float(probabilities[word])
    expected = torch.zeros(8, dtype=torch.float64)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()

    drawn = choose(logits.expand(len(UNIFORM), -1), sampling, UNIFORM)
    found = torch.bincount(drawn, minlength=8).double() / len(UNIFORM)
    assert (found - expected).abs().max() < 2 / len(UNIFORM)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_wide_nucleus_is_whole(top_p: float) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = logits.argsort(descending=True)
    reached = logits.softmax(0)[order].cumsum(0)
    size = int((reached < top_p).sum()) + 1
    uniform = UNIFORM[::50]
    drawn = choose(logits.expand(len(uniform), -1), Sampling(temperature=1.0, top_p=top_p), uniform)
    expected = order[torch.searchsorted(reached, uniform * reached[size - 1], right=True)]
    assert torch.equal(drawn, expected)
    assert set(drawn.tolist()) <= set(order[:size].tolist())


def test_samples_depend_on_seed_prompt_and_number_alone(model: XLM) -> None:
    prompts = prompts_of([2, 7, 5])

    def sample(rows: list[int], seed: int, numbers: list[int] | None = None) -> list[list[int]]:
        chosen = [prompts[row] for row in rows]
        return generate(model, chosen, 1, 15, 31, Sampling(1.0, seed=seed), numbers, stop_at_eos=False)

    together = sample([0, 1, 2], 1)
    assert sample([2, 0], 1) == [together[2], together[0]]
    assert sample([1], 1) == [together[1]]
    assert sample([1], 2) != [together[1]]
    first, second = sample([1, 1], 1, [0, 1])
    assert first == together[1] != second


@pytest.fixture(scope="module")
def text_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path], golden_text: tuple[str, str]
) -> Path:
    torch.manual_seed(6)
    model = XLM(ModelShape(n_words=6142, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_positions=64))
    return make_checkpoint(tmp_path_factory.mktemp("generate") / "model.pt", model, *golden_text, bptt=64)


def test_texts_begin_with_their_prompts_and_come_in_order(text_checkpoint: Path) -> None:
    trained = open_checkpoint(text_checkpoint, "cpu")
    prompts = ["Es war einmal", "", "Der König sagte: „Ja!“", "Ein Satz.\nNoch einer"]
    sampling = Sampling(temperature=1.0, seed=3)
    found = continue_texts(
        trained, prompts, "de", 6, sampling=sampling, num_samples=2, stop_at_eos=False, batch_texts=3
    )
    assert [(c.prompt, c.sample) for c in found] == [(prompt, sample) for prompt in prompts for sample in (0, 1)]
    beginnings = ["Es war einmal ", "", "Der König sagte: „Ja!“", "Ein Satz.\n"]
    for continuation, beginning in zip(found[::2], beginnings, strict=True):
        assert continuation.text.startswith(beginning)
        assert len(continuation.tokens) == 6
        assert not {i for i in range(14) if i != EOS} & set(continuation.tokens)
    assert found[0].tokens != found[1].tokens
    # an eos begins every text: the model reads what the trainer would have shown it
    ids = [EOS, *trained.text.encode(["Es war einmal"], "de").ids.tolist()[:-1]]
    alone = generate(trained.model, [ids], 0, 6, 63, sampling, stop_at_eos=False, banned=[0, *range(2, 14)])
    assert found[0].tokens == alone[0]


@pytest.fixture(scope="module")
def spoken(text_checkpoint: Path) -> TrainedModel:
    return open_checkpoint(text_checkpoint, "cpu")


def continued(spoken: TrainedModel, prompt: str, line: str, stop: Sequence[str] = ()) -> tuple[Continuation, list[str]]:
    """A continuation by the words of a line, and its text after each of them."""
    text, shown = Continuation(spoken, prompt, "en", stop=stop), []
    for token in spoken.text.encode([line], "en").ids.tolist():
        if not text.ended:
            text.add(token, -1.0, stop_at_eos=True)
            shown.append(text.text)
    text.end()
    return text, [*shown, text.text]


LINES = ['"No," she said, "it\'s late."', "a 'little' one", "it (and that) ends; x", 'he said: "Go!" and went']


@pytest.mark.parametrize("line", LINES)
def test_what_was_printed_does_not_change(spoken: TrainedModel, line: str) -> None:
    text, shown = continued(spoken, "The king: ", line)
    assert text.text == f"The king: {line}"
    assert all(after.startswith(before) for before, after in pairwise(shown))
    assert shown[0].startswith("The king:")
    assert len(set(shown)) > 2  # as words come, not at the end


def test_a_piece_of_a_word_waits_for_the_rest(spoken: TrainedModel) -> None:
    pieces = spoken.text.encode(["unbelievable"], "en").ids.tolist()[:-1]
    assert len(pieces) > 1
    text = Continuation(spoken, "An", "en")
    for token in pieces[:-1]:
        text.add(token, 0.0, stop_at_eos=True)
        assert text.text == "An"
    text.add(pieces[-1], 0.0, stop_at_eos=True)
    assert text.text == "An unbelievable"


def test_a_quotation_mark_of_the_prompt_stays_as_it_is(spoken: TrainedModel) -> None:
    """By itself the prompt's mark would close, with the next word it opens."""
    assert continued(spoken, 'He said "', "Yes")[0].text == 'He said "Yes'


def test_a_text_ends_before_a_stop_string(spoken: TrainedModel) -> None:
    line = "the one, the other; and that."
    text, shown = continued(spoken, "The king, ", line, stop=["; ", "er; a"])
    assert text.finished
    assert text.text == "The king, the one, the oth"
    assert all(text.text.startswith(one) for one in shown)  # no letter of the stop string was shown before
    assert len(text.tokens) < len(spoken.text.encode([line], "en").ids)
    assert not continued(spoken, "The king, ", line, stop=["king,"])[0].text.endswith(
        "king,"
    )  # of the prompt: does not count
    text, _ = continued(spoken, "The", 'king "', stop=['"'])  # only the end tells that it closes
    assert (text.text, text.finished) == ("The king", True)


def test_log_probabilities_are_the_model_s_own(spoken: TrainedModel) -> None:
    """Of the words that were drawn, as the plain model scores them, whatever the temperature."""
    sampling = Sampling(temperature=0.5, top_k=20, seed=1)
    texts = continue_texts(spoken, ["Es war", "Ja"], "de", 8, sampling=sampling, stop_at_eos=False)
    for text in texts:
        read = torch.tensor([[*text.ids, *text.tokens]])
        with torch.no_grad():
            scores = spoken.model.logits(spoken.model(read, langs=0))[0].log_softmax(dim=1)
        expected = [float(scores[len(text.ids) - 1 + n, token]) for n, token in enumerate(text.tokens)]
        assert text.logprobs == pytest.approx(expected, abs=1e-4)
        assert len(text.pieces) == len(text.logprobs) == 8


def test_texts_grow_together_and_are_those_of_the_end(spoken: TrainedModel) -> None:
    steps = [[text.text for text in texts] for texts in continue_by_words(
        spoken, ["Es", "Ja", "Nein"], "de", 5, Sampling(1.0), stop_at_eos=False, batch_texts=2)]  # fmt: skip
    assert [len(step) for step in steps] == [2] * 5 + [3] * 5
    for before, after in pairwise(steps):
        assert all(new.startswith(old) for old, new in zip(before, after, strict=False))


def test_text_of_ids_reverses_preparation(text_checkpoint: Path) -> None:
    reader = open_checkpoint(text_checkpoint, "cpu").text
    for language, line in {
        "en": 'The king\'s daughter, however, said: "No!"',
        "de": "Das Mädchen (es war 12) ging.",
    }.items():
        assert reader.decode(reader.encode([line], language).ids[:-1].tolist(), language) == line
    broken = reader.vocabulary.index("ein@@")
    assert reader.decode([broken], "de") == "ein"


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr(sys, "argv", ["xlm-generate", *overrides])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_command(
    text_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "texts.jsonl"
    prompts.write_text("She said: a=b, c\nThe\n", encoding="utf-8")
    arguments = ("lang=en", "temperature=1", "top_k=50", "num_samples=2", "max_tokens=4", "stop_at_eos=false")
    status = run(
        monkeypatch, f"checkpoint='{text_checkpoint}'", f"prompts_file='{prompts}'", f"out='{out}'", *arguments
    )
    assert status == 0
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(w["prompt"], w["sample"]) for w in written] == [
        (p, s) for p in ("She said: a=b, c", "The") for s in (0, 1)
    ]
    assert capsys.readouterr().out == "".join(f"{w['text']}\n" for w in written)
    assert all(len(w["tokens"]) == 4 and w["language"] == "en" and not w["finished"] for w in written)


PROMPTS = [
    "Der König sagte", 'Ja, nein = "gut"', "It's", "'x, y'", "\\ü\\", "(a)", "5", "1e5", "[a]", "{a: b}", "${x}", "\\${x}",
    "true", "a  b   c",
]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_taken_as_it_stands(
    text_checkpoint: Path, prompt: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "texts = ü.jsonl"  # a path likewise
    assert run(monkeypatch, f"checkpoint={text_checkpoint}", "lang=de", f"prompt={prompt}", f"out={out}") == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["prompt"] == prompt.strip("'")
    assert written["text"].startswith(written["prompt"])


def test_log_probabilities_and_stop_strings_by_command(
    text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "texts.jsonl"
    arguments = [f"checkpoint={text_checkpoint}", "lang=en", "prompt=The king", f"out={out}", "max_tokens=6"]
    assert run(monkeypatch, *arguments, "logprobs=true") == 0
    written = json.loads(out.read_text())
    assert len(written["logprobs"]) == len(written["pieces"]) == len(written["tokens"])
    assert f"in all {sum(written['logprobs']):.2f}" in capsys.readouterr().err
    new = written["text"].removeprefix("The king")
    (stop, *_) = re.findall("[a-z]{2}", new)
    assert run(monkeypatch, *arguments, f"stop=[{stop},qqq]") == 0
    stopped = json.loads(out.read_text())
    assert stopped["text"] == "The king" + new.partition(stop)[0]
    assert stopped["finished"]
    assert "logprobs" not in stopped
    assert run(monkeypatch, *arguments, "stop=[a,'']") == 2
    assert "stop='': every text would end" in capsys.readouterr().err


def test_a_signal_keeps_what_there_is(text_checkpoint: Path, tmp_path: Path) -> None:
    """Two texts of a batch, of which a word at least was printed; then the same words are in the file."""
    out = tmp_path / "texts.jsonl"
    words = [f"checkpoint={text_checkpoint}", "lang=en", "prompt=The king", "max_tokens=1000000", f"out={out}"]
    words += ["num_samples=2", "temperature=1", "stop_at_eos=false"]
    with (
        open(tmp_path / "told", "w") as told,
        subprocess.Popen(
            [sys.executable, "-m", "xlm_train.commands.generate", *words],
            stdout=subprocess.PIPE, stderr=told, env=process_environment(), text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        printed = process.stdout.read(60)
        process.send_signal(signal.SIGINT)
        printed += process.stdout.read()
    errors = (tmp_path / "told").read_text()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert printed.startswith("The king ")
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert "".join(f"{one['text']}\n" for one in written) == printed
    assert [one["sample"] for one in written] == [0, 1]
    assert {len(one["tokens"]) for one in written} == {len(written[0]["tokens"])}
    assert not any(one["finished"] for one in written)


def test_prompts_from_standard_input(
    text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [f"checkpoint={text_checkpoint}", "lang=en", "max_tokens=2"]
    for name in ("-", "/dev/stdin"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The king\nA  queen\n")))
        assert run(monkeypatch, *arguments, f"prompts_file={name}") == 0
        printed = capsys.readouterr()
        assert [line[:8] for line in printed.out.splitlines()] == ["The king", "A  queen"]
        assert "2 texts, " in printed.err
    assert run(monkeypatch, *arguments, f"prompts_file={tmp_path}") == 2
    assert "is a folder; give a text file" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "prompt=The", "temperature=nan") == 2
    assert "temperature=nan: must be finite" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "prompt=The") == 0
    assert "1 text, " in capsys.readouterr().err


def test_a_run_stands_for_its_best_checkpoint(text_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    for step in (5, 10):
        shutil.copy(text_checkpoint, folder / f"step-{step:08d}.pt")
    assert open_checkpoint(tmp_path / "run", "cpu").model.shape.dim == 16
    assert checkpoint_file.of_run(tmp_path / "run") == folder / "step-00000010.pt"
    (folder / "best.pt").symlink_to("step-00000005.pt")
    assert checkpoint_file.of_run(tmp_path / "run") == folder / "best.pt"
    assert checkpoint_file.of_run(folder / "step-00000010.pt") == folder / "step-00000010.pt"
    assert checkpoint_file.of_run("nowhere") == Path("nowhere")


def test_all_mistakes_are_reported_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "lang=en", "prompt=a", "max_tokens=many", "top_k=true") == 2
    message = capsys.readouterr().err
    for part in ("checkpoint has no value", "max_tokens=many: must be a whole number", "top_k=True: must be"):
        assert part in message
    given = ("checkpoint=none.pt", "lang=en", "prompt=a", "prompts_file=b", "top_p=0", "max_tokens=0", "num_samples=2")
    assert run(monkeypatch, *given) == 2
    message = capsys.readouterr().err
    for part in ("prompts_file=FILE, one of them", "top_p=0", "max_tokens=0", "temperature=1"):
        assert part in message
    assert run(monkeypatch, "checkpoint=none.pt", "lang=en", "prompt=a") == 2
    assert "checkpoint=none.pt: there is no such file" in capsys.readouterr().err


def test_unknown_language_is_refused_with_the_list(
    text_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, f"checkpoint='{text_checkpoint}'", "lang=fr", "prompt=Il") == 2
    assert f"lang=fr: {text_checkpoint} knows the languages de, en" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="de, en"):
        continue_texts(open_checkpoint(text_checkpoint, "cpu"), ["Il"], "fr")


def test_a_checkpoint_without_codes_says_so(
    tmp_path: Path, make_checkpoint: Callable[..., Path], golden_text: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = XLM(ModelShape(n_words=6142, dim=8, n_layers=1, n_heads=1, ffn_dim=8, max_positions=8))
    file = make_checkpoint(tmp_path / "model.pt", model, golden_text[0], "", bptt=8)
    assert run(monkeypatch, f"checkpoint='{file}'", "lang=en", "prompt=The") == 2
    assert "holds no BPE codes" in capsys.readouterr().err
