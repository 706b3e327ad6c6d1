"""The original's checkpoints to ours and back: identical tensor by tensor, and training goes on from them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlm_train.interop.original import names, unpickle
from xlm_train.interop.original.checkpoint import export_checkpoint, import_checkpoint
from xlm_train.model.transformer import XLM, ModelShape
from xlm_train.runtime import checkpoint_file
from xlm_train.runtime.errors import CheckpointError
from xlm_train.training.optim import OriginalAdam
from xlm_train.training.state import TrainState

FILES = {"best model": "model/best-valid_clm_ppl.pth", "full checkpoint": "train/checkpoint.pth"}
FIXTURES = [
    *(pytest.param("shared", file, id=name) for name, file in FILES.items()),
    pytest.param("complete", FILES["full checkpoint"], id="full checkpoint, all moments", marks=pytest.mark.slow),
]


@pytest.fixture
def full(shared: Path) -> Path:
    return shared / "goldens" / FILES["full checkpoint"]


@pytest.fixture
def changed(full: Path, tmp_path: Path) -> Callable[..., Path]:
    """changed(key=value or function of the old value, ...) -> the golden checkpoint with these entries changed."""

    def change(**changes: Any) -> Path:
        raw = unpickle.load(full)
        for key, value in changes.items():
            if value is None:
                del raw[key]
            else:
                raw[key] = value(raw[key]) if callable(value) else value
        torch.save(raw, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    return change


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """What differs in value, type, dtype, strides or order of keys."""
    if type(a) is not type(b):
        return [f"{where}: {type(a)} {type(b)}"]
    if isinstance(a, dict):
        keys = [] if list(a) == list(b) or where == "['params']" else [f"{where}: keys or their order"]
        return keys + [line for key in a for line in differences(a[key], b[key], f"{where}[{key!r}]")]
    if isinstance(a, list | tuple):
        pairs = enumerate(zip(a, b, strict=True)) if len(a) == len(b) else []
        return [f"{where}: length"] * (len(a) != len(b)) + [
            x for i, (p, q) in pairs for x in differences(p, q, f"{where}[{i}]")
        ]
    if isinstance(a, torch.Tensor):
        equal = a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        return [] if equal and a.requires_grad == b.requires_grad else [where]
    if isinstance(a, np.ndarray):
        return [] if a.dtype == b.dtype and np.array_equal(a, b) else [where]
    return [] if a == b else [f"{where}: {a!r} {b!r}"]


@pytest.mark.parametrize(("folder", "file"), FIXTURES)
@pytest.mark.parametrize("vocab_multiple", [1, 8])
def test_there_and_back_is_identical(
    request: pytest.FixtureRequest, tmp_path: Path, folder: str, file: str, vocab_multiple: int
) -> None:
    """Keys, order, types and every number, moments included, through a checkpoint of ours on disk."""
    golden = request.getfixturevalue(folder) / "goldens" / file
    imported = import_checkpoint(golden, vocab_multiple=vocab_multiple)
    assert imported.warnings == []
    checkpoint_file.save(tmp_path / "step-00000000.pt", imported.content)
    export_checkpoint(tmp_path / "back.pth", checkpoint_file.load(tmp_path / "step-00000000.pt"))
    before = torch.load(golden, weights_only=False)
    after = torch.load(tmp_path / "back.pth", weights_only=False)
    assert before["params"].keys() == after["params"].keys()
    assert differences(before, after) == []
    assert (tmp_path / "back.pth").stat().st_size < 1.01 * golden.stat().st_size  # tied weights are written once


def test_what_comes_of_a_full_checkpoint(
    full: Path, golden_state: Callable[[str], dict[str, torch.Tensor]], golden_text: tuple[str, str]
) -> None:
    content = import_checkpoint(full, codes="codes").content
    theirs, final = (
        names.to_original(content["model"], ModelShape(**content["shape"]), tied=False),
        golden_state("final"),
    )
    assert theirs.keys() == final.keys()
    assert all(torch.equal(theirs[name], final[name]) for name in theirs)
    assert content["text"] == {
        "languages": {"de": 0, "en": 1},
        "vocab": golden_text[0],
        "codes": "codes",
        "lowercase": False,
        "remove_accents": False,
    }
    progress = content["progress"]
    assert (progress["step"], progress["updates"], progress.get("skipped", [])) == (200, 200, [])
    assert content["config"]["data"] == {"bptt": 64}
    assert len(content["lineage"]["parents"]) == 1


@pytest.mark.parametrize("vocab_multiple", [1, 8])
@pytest.mark.parametrize("optimizer", [OriginalAdam, torch.optim.AdamW])
def test_training_goes_on_with_the_moments(full: Path, optimizer: Any, vocab_multiple: int) -> None:
    """One update after the import, against the original's formula on the file's own numbers, in double precision."""
    content = import_checkpoint(full, vocab_multiple=vocab_multiple).content
    model = XLM(ModelShape(**content["shape"]))
    model.load_state_dict(content["model"])
    adam = optimizer(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    adam.load_state_dict(content["optimizer"])
    lr, eps, weight_decay = (adam.param_groups[0][key] for key in ("lr", "eps", "weight_decay"))
    assert (lr, adam.param_groups[0]["betas"], eps, weight_decay) == (2.5e-4, (0.9, 0.98), 1e-6, 0.01)

    raw = unpickle.load(full)
    order = [name for name in raw["model"] if name != names.TIED]
    torch.manual_seed(0)
    gradients = {name: 0.01 * torch.randn_like(raw["model"][name]) for name in order}
    ours = names.to_ours(gradients, model.shape, "gradients")
    for name, parameter in model.named_parameters():
        parameter.grad = ours[name]
    adam.step()

    after = names.to_original(model.state_dict(), model.shape)
    step = 201
    for number, name in enumerate(order):
        state = raw["model_optimizer"]["state"][number]
        gradient = gradients[name].double()
        m = 0.9 * state["exp_avg"].double() + 0.1 * gradient
        v = 0.98 * state["exp_avg_sq"].double() + 0.02 * gradient**2
        old = raw["model"][name].double() * (1 - lr * weight_decay)
        denominator = v.sqrt() + eps
        if optimizer is torch.optim.AdamW:
            denominator = v.sqrt() + eps * math.sqrt(1 - 0.98**step)
        expected = old - lr * math.sqrt(1 - 0.98**step) / (1 - 0.9**step) * m / denominator
        torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=2e-7, msg=name)


def test_without_the_optimizer(full: Path) -> None:
    content = import_checkpoint(full, with_optimizer=False).content
    assert content["optimizer"] is None
    assert content["progress"]["updates"] == 0


def test_names_of_distributed_training(changed: Callable[..., Path], full: Path) -> None:
    path = changed(model=lambda state: OrderedDict((f"module.{name}", t) for name, t in state.items()))
    assert differences(import_checkpoint(path).content["model"], import_checkpoint(full).content["model"]) == []


def test_old_files(full: Path, tmp_path: Path) -> None:
    """The published models are of 2019: files of torch.save before zip, numpy.core, ids of parameters as keys."""
    raw = torch.load(full, weights_only=False)
    adam = raw["model_optimizer"]
    keys = {number: 139_872_398_000 + 56 * number for number in adam["state"]}
    adam["state"] = {keys[number]: state for number, state in reversed(adam["state"].items())}
    adam["param_groups"][0]["params"] = list(keys.values())
    torch.save(raw, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pth").read_bytes()
    assert b"numpy._core" in data
    (tmp_path / "old.pth").write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    before, after = import_checkpoint(full).content, import_checkpoint(tmp_path / "old.pth").content
    for key in ("model", "optimizer", "progress", "text"):
        assert differences(before[key], after[key], key) == []


def ours(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A small checkpoint of our own training."""
    torch.manual_seed(0)
    shape = ModelShape(
        **{"n_words": 20, "dim": 8, "n_layers": 1, "n_heads": 2, "ffn_dim": 32, "vocab_multiple": 8, **changes}
    )
    model = XLM(shape)
    adam = OriginalAdam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    hidden = model(torch.randint(20, (2, 5)), 1 if shape.uses_languages else None)
    model.loss(hidden, torch.randint(20, (2, 5))).backward()
    adam.step()
    languages = {"de": 0, "en": 1, "fr": 2}
    content = {
        "shape": shape.to_dict(),
        "model": model.state_dict(),
        "optimizer": adam.state_dict(),
        "progress": TrainState(step=3, updates=1, best_metric=7.5).to_dict(),
        "text": {
            "languages": {code: number for code, number in languages.items() if number < shape.n_langs},
            "vocab": "".join(f"w{n} {9 - n}\n" for n in range(6)),
            "codes": "w 0</w> 3\n",
            "lowercase": False,
            "remove_accents": False,
        },
        "lineage": {"corpus": "c", "parents": []},
        "metrics": {"val/ppl": 7.5},
        "config": {
            "run_name": "first",
            "data": {"bptt": 32, "slots": 4, "slot_streams": 2, "lang_alpha": 0.7},
            "trainer": {"clip_norm": 5.0, "precision": "16-mixed"},
            "optimizer": {"lr": 1e-4, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.0},
            "schedule": {"_target_": "xlm_train.training.schedule.inverse_sqrt", "warmup_updates": 4000},
        },
    }
    checkpoint_file.save(tmp_path / "step-00000003.pt", content)
    return checkpoint_file.load(tmp_path / "step-00000003.pt")


SHAPES = {
    "usual": {},
    "sinusoidal": {"sinusoidal_positions": True},
    "no language embeddings": {"language_embeddings": False},
    "one language": {"n_langs": 1},
    "three languages": {"n_langs": 3},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_ours_to_the_original_and_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = ours(tmp_path, **changes)
    export_checkpoint(tmp_path / "export.pth", content)
    back = import_checkpoint(tmp_path / "export.pth", codes=content["text"]["codes"], vocab_multiple=8).content
    for key in ("shape", "model", "text"):
        assert differences(dict(sorted(back[key].items())), dict(sorted(content[key].items())), key) == []
    assert differences(back["optimizer"]["state"], content["optimizer"]["state"]) == []
    assert back["progress"]["updates"] == 1


def test_ours_has_the_keys_and_types_of_the_original(tmp_path: Path, shared: Path) -> None:
    golden = torch.load(shared / "goldens" / FILES["full checkpoint"], weights_only=False)
    export_checkpoint(tmp_path / "export.pth", ours(tmp_path))
    found = torch.load(tmp_path / "export.pth", weights_only=False)
    assert list(found) == list(golden)
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in golden.items()}
    of_evaluation = {"hyp_path", "ref_paths"}  # the original adds these when it evaluates translations
    assert golden["params"].keys() - of_evaluation == found["params"].keys()
    kinds = {name: type(value) for name, value in found["params"].items()}
    assert kinds["lg_sampling_factor"] is float  # golden: -1, an int; set, it is a share
    for name in found["params"].keys() - {"lg_sampling_factor"}:
        assert kinds[name] is type(golden["params"][name]), name
    assert found["params"]["optimizer"] == (
        "adam_inverse_sqrt,lr=0.0001,beta1=0.9,beta2=0.98,weight_decay=0,eps=0.00000001,warmup_updates=4000"
    )
    assert found["best_metrics"] == {"valid_clm_ppl": 7.5}
    group, golden_group = (raw["model_optimizer"]["param_groups"][0] for raw in (found, golden))
    assert {key: type(value) for key, value in group.items()} == {
        key: type(value) for key, value in golden_group.items()
    }
    state, golden_state = (raw["model_optimizer"]["state"][0] for raw in (found, golden))
    assert {key: type(value) for key, value in state.items()} == {
        key: type(value) for key, value in golden_state.items()
    }


def test_an_export_needs_none_of_our_code(tmp_path: Path) -> None:
    export_checkpoint(tmp_path / "export.pth", ours(tmp_path))
    script = (
        "import sys, torch; c = torch.load('export.pth', weights_only=False); "
        "assert not [m for m in sys.modules if m.startswith(('xlm', 'data_prep'))]; print(c['params']['n_words'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "20\n"


def test_an_export_without_the_optimizer(tmp_path: Path) -> None:
    export_checkpoint(tmp_path / "export.pth", ours(tmp_path), with_optimizer=False)
    assert "model_optimizer" not in unpickle.load(tmp_path / "export.pth")


# -- files that are not what they should be ----------------------------------------------------------------------------


def drop_layer(state: Any) -> Any:
    return {name: tensor for name, tensor in state.items() if "attentions.1.k_lin" not in name}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no dictionary": ({"dico_id2word": None}, "lacks dico_id2word"),
    "a parameter missing": ({"model": drop_layer}, r"lacks attentions\.1\.k_lin\.bias, attentions\.1\.k_lin\.weight"),
    "model is no state dict": ({"model": [1]}, "not a state dict"),
    "params is no dict": ({"params": [1]}, "params are not a dict"),
    "ReLU": ({"params": lambda p: {**p, "gelu_activation": False}}, "gelu_activation=False"),
    "adaptive softmax": ({"params": lambda p: {**p, "asm": True}}, "asm=True"),
    "no heads": ({"params": lambda p: {**p, "n_heads": "4"}}, "n_heads"),
    "heads that do not divide": ({"params": lambda p: {**p, "n_heads": 5}}, r"changed\.pth.*n_heads"),
    "huge number": ({"params": lambda p: {**p, "n_heads": 10**5000}}, "n_heads"),
    "no languages": ({"params": lambda p: {**p, "lang2id": {}}}, "lang2id"),
    "languages with gaps": ({"params": lambda p: {**p, "lang2id": {"de": 0, "en": 2}}}, "lang2id"),
    "language that is a path": ({"params": lambda p: {**p, "lang2id": {"../x": 0, "en": 1}}}, "lang2id"),
    "another number of languages": ({"params": lambda p: {**p, "lang2id": {"de": 0}}}, "embeddings of 2 languages"),
    "object in params": ({"params": lambda p: {**p, "x": b"bytes"}}, "params hold a bytes"),
    "half a character": ({"params": lambda p: {**p, "x": "\ud800"}}, "params hold a str"),
    "dictionary too short": ({"dico_counts": lambda d: {"<s>": 0}}, "do not belong together"),
    "dictionary in another order": (
        {"dico_id2word": lambda d: {**d, 14: d[15], 15: d[14]}}, "do not belong together",
    ),
    "optimizer of another kind": ({"model_optimizer": {"fp32_groups_flat": []}}, "optimizer=false"),
    "moments of another size": (
        {"model_optimizer": lambda o: {**o, "state": {**o["state"], 0: {**o["state"][1], "step": 200}}}},
        r"exp_avg: position_embeddings\.weight has size \(2, 64\)",
    ),
    "keys of moments that are no numbers": (
        {"model_optimizer": lambda o: {**o, "param_groups": [{**o["param_groups"][0], "params": [((),)]}]}},
        "optimizer=false",
    ),
    "updates below zero": (
        {"model_optimizer": lambda o: {**o, "param_groups": [{**o["param_groups"][0], "num_updates": -1}]}},
        "optimizer=false",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(changed: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    path = changed(**changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(path)
    assert all(str(path) in problem for problem in caught.value.problems)


def test_params_without_end(changed: Callable[..., Path]) -> None:
    """A tree of shared lists: small as a pickle, without end when it is walked."""
    tree: list[Any] = []
    for _ in range(9):
        tree = [tree] * 100
    with pytest.raises(CheckpointError, match="too large or too deep"):
        import_checkpoint(changed(params=lambda p: {**p, "x": tree}))


def test_an_encoder_decoder_is_told_apart(tmp_path: Path) -> None:
    torch.save({"encoder": {}, "decoder": {}, "params": {}}, tmp_path / "mt.pth")
    with pytest.raises(CheckpointError, match="encoder-decoder"):
        import_checkpoint(tmp_path / "mt.pth")


def test_a_masked_model_is_known_as_one(changed: Callable[..., Path]) -> None:
    path = changed(params=lambda p: {**p, "clm_steps": [], "mlm_steps": [("de", None), ("en", None)]})
    assert import_checkpoint(path).content["evaluation"] == "masked"
    assert import_checkpoint(changed()).content["evaluation"] == "causal"
