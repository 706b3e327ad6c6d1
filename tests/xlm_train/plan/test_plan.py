"""xlm-plan: its arithmetic at points computed by hand, its counts against the real model, its command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from tests.conftest import PATIENCE, REPOSITORY, command, process_environment
from xlm_train.config.cluster import ClusterConfig
from xlm_train.data.corpus import Corpus
from xlm_train.model.flops import DECODING, Row, flops_per_token, row_flops, training_flops_per_token
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.model.transformer import XLM, ModelShape, count_parameters
from xlm_train.objectives.translation import translation_batch
from xlm_train.plan.estimate import make_plan
from xlm_train.plan.limits import critical_batch
from xlm_train.plan.memory import Setting, activation_bytes, parameter_shapes, peak_memory
from xlm_train.plan.page import as_markdown, as_text
from xlm_train.plan.probe import Speed, StepParts, probe_shape, speed_of
from xlm_train.plan.settings import problems_of_plan
from xlm_train.plan.step import FEW_ROWS, LAYER_SECONDS, gradients_of, slot_time, speed_of_cluster

CLUSTERS = sorted(path.stem for path in (REPOSITORY / "configs/cluster").glob("*.yaml"))
REAL = ModelShape(n_words=64699, vocab_multiple=8)


def setting(**changes: Any) -> Setting:
    values = {
        "streams": 4, "positions": 16, "precision": "32-true", "gpu": False, "recompute": False,
        "optimizer": "torch.optim.AdamW", "processes": 1, "compression": None,
    }  # fmt: skip
    return Setting(**{**values, **changes})


# --- counted ------------------------------------------------------------------------------------------------------


def test_flops_of_the_real_model() -> None:
    parts = flops_per_token(REAL, 255, recompute=False)
    assert parts["attention projections"].forward == 6 * 8 * 1024**2
    assert parts["attention scores"].forward == 6 * 2 * 2 * 1024 * 128  # a query meets 128 keys on average
    assert parts["feed-forward"].forward == 6 * 4 * 1024 * 4096
    assert parts["output softmax"].forward == 2 * 64704 * 1024
    total = sum(part.total for part in parts.values())
    assert total == 3 * sum(part.forward for part in parts.values())
    assert total == pytest.approx(0.860e9, rel=0.001)
    assert parts["output softmax"].total / total == pytest.approx(0.46, abs=0.005)


def test_recomputing_adds_the_blocks_forward_pass() -> None:
    without, with_ = (flops_per_token(REAL, 255, recompute) for recompute in (False, True))
    added = sum(part.total for part in with_.values()) - sum(part.total for part in without.values())
    assert added == sum(part.forward for name, part in without.items() if name != "output softmax")


def test_flops_of_the_blocks_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape = ModelShape(n_words=96, dim=32, n_layers=2, n_heads=4, ffn_dim=64, dropout=0.0, attention_dropout=0.0)
    model = XLM(shape)
    tokens = torch.randint(96, (3, 9))
    with FlopCounterMode(display=False) as counter:
        model(tokens, 0).sum().backward()
    parts = flops_per_token(shape, 9, recompute=False)
    products = 3 * 9 * (parts["attention projections"].total + parts["feed-forward"].total)
    # a window shorter than a block of queries is computed whole, without the causal half left out: 9 keys for 5
    scores = 3 * 9 * parts["attention scores"].total * 9 / 5
    assert counter.get_total_flops() == pytest.approx(products + scores)


def test_flops_of_a_masked_loss_are_those_that_torch_counts() -> None:
    """All but attention's scores, which torch does not count in its own kernel on a CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = ModelShape(n_words=100, dim=32, n_layers=2, n_heads=4, ffn_dim=64, dropout=0.0, attention_dropout=0.0)
    model, tokens, chosen = XLM(shape, ops="plain"), torch.randint(100, (3, 10)), torch.tensor([1, 4, 7, 11, 18, 29])
    with FlopCounterMode(display=False) as counter:
        model.masked_loss(tokens, 0, chosen, tokens.flatten()[chosen]).backward()
    parts = flops_per_token(shape, 10, recompute=False, mask_share=6 / 30)
    total = sum(part.total for part in parts.values())
    assert counter.get_total_flops() == pytest.approx(30 * (total - parts["attention scores"].total))
    assert parts["attention scores"].forward == 2 * 2 * 2 * 32 * 10  # a query meets all 10 keys
    assert training_flops_per_token(shape, Row(10, 10, mask_share=6 / 30), False) == total


def test_parameters_are_those_of_the_model() -> None:
    sizes = parameter_shapes(REAL)
    assert sum(math.prod(size) for size in sizes.values()) == 142_422_203 + 5 * 1025  # with 5 rows of padding
    shape = ModelShape(n_words=50, dim=16, n_layers=3, n_heads=2, ffn_dim=32, max_positions=20)
    model = XLM(shape)
    gradients = gradients_of(parameter_shapes(shape), 3)
    assert sum(gradient.elements for gradient in gradients) == count_parameters(model)


def test_gradients_arrive_in_the_order_assumed() -> None:
    shape = ModelShape(n_words=50, dim=16, n_layers=3, n_heads=2, ffn_dim=32, max_positions=20)
    model, arrived = XLM(shape), []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    model.next_token_loss(torch.randint(50, (2, 9)), 0).backward()
    assert arrived[0] == "output_bias"
    assert arrived[-1] == "embeddings.weight"
    blocks = [int(name.split(".")[1]) for name in arrived if name.startswith("blocks.")]
    assert blocks == sorted(blocks, reverse=True)
    gradients = gradients_of(parameter_shapes(shape), 3)
    assert gradients[0].shape == (50,)
    assert gradients[-1].shape == (50, 16)
    assert [gradient.ready for gradient in gradients] == sorted(gradient.ready for gradient in gradients)


def kept_for_backward(model: torch.nn.Module, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps at the end of a forward pass, parameters excluded."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = forward()
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("dropout", "attention_dropout"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.1)])
@pytest.mark.parametrize("positions", [17, 300])
def test_activations_are_what_autograd_keeps(dropout: float, attention_dropout: float, positions: int) -> None:
    shape = ModelShape(
        n_words=60, dim=32, n_layers=3, n_heads=4, ffn_dim=80, dropout=dropout, attention_dropout=attention_dropout
    )
    model = XLM(shape)
    kept = kept_for_backward(model, lambda: model(torch.randint(60, (2, positions)), 0))
    assert activation_bytes(shape, setting(streams=2, positions=positions)) == pytest.approx(kept, rel=0.001)


def test_recomputing_keeps_the_inputs_of_the_blocks() -> None:
    shape = ModelShape(n_words=60, dim=32, n_layers=3, n_heads=4, ffn_dim=80)
    model = XLM(shape, recompute=True)
    kept = kept_for_backward(model, lambda: model(torch.randint(60, (2, 17)), 0))
    one_block = (
        activation_bytes(shape, setting(streams=2, positions=17))
        - activation_bytes(ModelShape(**{**shape.to_dict(), "n_layers": 2}), setting(streams=2, positions=17))
    )  # fmt: skip
    predicted = activation_bytes(shape, setting(streams=2, positions=17, recompute=True))
    assert predicted - one_block == pytest.approx(kept, rel=0.02)  # besides them a few numbers for each position


def test_memory_of_the_real_run() -> None:
    parts = peak_memory(REAL, 142_427_328, setting(streams=16, positions=255, precision="16-mixed", gpu=True, slots=4))
    assert parts["weights"] == parts["gradients"] == 4 * 142_427_328
    assert parts["optimizer"] == 8 * 142_427_328
    # a token of a block: (6 x 1024 + 4096) float16, two inputs of norms float32, two masks, one sum a head
    block = 2 * (6 * 1024 + 4096) + 2 * (4 * 1024 + 8) + 2 * 1024 + 4 * 8
    tokens = 16 * 255
    outside = tokens * (8 + 4 * 1024 + 8 + 1024)
    assert parts["activations of one slot"] == 6 * tokens * block + outside
    assert parts["weights in low precision"] == 2 * 6 * (4 + 8) * 1024**2


def test_a_single_slots_gradient_of_the_vocabulary_is_the_losss() -> None:
    shape = ModelShape(n_words=60, dim=32, n_layers=1, n_heads=4, ffn_dim=80)
    one, two = (peak_memory(shape, 10**6, setting(slots=slots)) for slots in (1, 2))
    assert two["gradients"] - one["gradients"] == 4 * 60 * 32


def test_compression_and_the_original_adam_cost_memory() -> None:
    shape = ModelShape(n_words=60, dim=32, n_layers=1, n_heads=4, ffn_dim=80)
    plain = peak_memory(shape, 10**6, setting(processes=2))
    assert peak_memory(shape, 10**6, setting(processes=2, compression="fp16"))["compressed gradients"] == 2e6
    assert peak_memory(shape, 10**6, setting(processes=2, compression="powersgd"))["compression errors"] == 4e6
    assert "compressed gradients" not in peak_memory(shape, 10**6, setting(compression="fp16"))
    denominators = peak_memory(shape, 10**6, setting(optimizer="xlm_train.training.optim.OriginalAdam"))
    work = ("activations of one slot", "loss and backward")
    assert "update" not in plain
    assert denominators["update"] == 4e6 - sum(plain[part] for part in work)


# --- computed -----------------------------------------------------------------------------------------------------


def cluster_file(name: str, compose: Callable[..., dict[str, Any]]) -> ClusterConfig:
    return ClusterConfig(**compose("plan", f"cluster={name}")["cluster"])


def test_a_slot_takes_its_flops_over_the_speed(compose: Callable[..., dict[str, Any]]) -> None:
    speed = speed_of_cluster(cluster_file("v100_8", compose), "16-mixed", 0.4)
    assert speed.blocks == speed.softmax == pytest.approx(50e12)
    flops = flops_per_token(REAL, 255, recompute=False)
    time = slot_time(REAL, flops, 16 * 255, speed)
    assert time.total == pytest.approx(16 * 255 * sum(part.total for part in flops.values()) / 50e12)
    blocks_backward = sum(part.backward for name, part in flops.items() if name != "output softmax")
    assert time.backward == pytest.approx(16 * 255 * blocks_backward / 50e12)


def test_a_masked_run_reads_all_and_predicts_a_share(compose: Callable[..., dict[str, Any]]) -> None:
    causal, masked, both = (
        make_plan(compose("plan", "experiment=clm_ende_1024", *words), None)
        for words in ((), ("objective=mlm",), ("objective=mlm", "objective.mask_share=0.3"))
    )
    assert masked["step"]["tokens"] == causal["step"]["tokens"] == 64 * 64 * 256
    assert masked["step"]["predicted"] == round(0.15 * 64 * 64 * 256)
    softmax = [plan["flops_per_token"]["output softmax"]["total"] for plan in (causal, masked, both)]
    assert softmax[1:] == pytest.approx([0.15 * softmax[0], 0.3 * softmax[0]], rel=1e-6)
    assert masked["flops_per_token"]["attention scores"]["forward"] == 6 * 2 * 2 * 1024 * 256
    assert causal["time"]["hours"] > both["time"]["hours"] > masked["time"]["hours"]
    assert causal["memory"]["peak_gb"] > masked["memory"]["peak_gb"]
    least = make_plan(compose("plan", "experiment=smoke", "objective=mlm", "objective.mask_share=1e-300"), None)
    assert least["step"]["predicted"] == 2  # one of each slot


def test_the_real_run(compose: Callable[..., dict[str, Any]]) -> None:
    plan = make_plan(compose("plan", "experiment=clm_ende_1024"), None)
    assert plan["cluster"]["devices"] == 64
    assert plan["step"]["tokens"] == 64 * 64 * 256
    assert plan["step"]["slots_per_device"] == 4
    assert plan["memory"]["fits"]
    parameters = plan["model"]["parameters"]
    # by hand: 4 slots of 16 x 255 tokens of 0.860 GFLOP at 50 TFLOP/s, and an update of 44 bytes a parameter at 900 GB/s
    flops = sum(part["total"] for part in plan["flops_per_token"].values())
    compute = 4 * 16 * 255 * flops / 50e12 + 44 * parameters / 900e9
    network = plan["network"]
    assert network["compute_seconds"] == pytest.approx(compute)
    # 570 MB: 2 x 7 / 8 of it at 150 GB/s, 2 x 7 / 8 at 12.5 GB/s, and 28 messages of 20 us for each bucket
    inside, across = 14 * 4 * parameters / 8 / 150e9, 14 * 4 * parameters / 8 / 12.5e9
    assert network["all_reduce_seconds"] == pytest.approx(inside + across, rel=0.15)
    assert network["all_reduce_seconds"] > inside + across
    assert plan["speed"]["seconds_per_step"] == pytest.approx(compute + network["exposed_seconds"])
    assert plan["budget"] == {
        "steps": 312600, "tokens": 312600 * 2**20, "source": "trainer.max_steps and trainer.max_tokens",
    }  # fmt: skip
    hours = plan["time"]["hours"]
    stall = 12 * parameters / 1e9 / 521
    assert hours == pytest.approx(312600 * (plan["speed"]["seconds_per_step"] + stall) / 3600)
    assert plan["cost"]["total"] == pytest.approx(64 * hours * 3.90)
    assert plan["energy"]["kwh"] == pytest.approx(64 * hours * 0.3 * 1.58)
    assert plan["energy"]["co2_kg"] == pytest.approx(plan["energy"]["kwh"] * 0.481)


def test_the_users_figures_stand_above_the_clusters(compose: Callable[..., dict[str, Any]]) -> None:
    words = [
        "plan.efficiency=0.2",
        "plan.price_per_gpu_hour=1",
        "plan.region=france",
        "plan.pue=1.1",
        "plan.tokens=1048577",
    ]
    plan = make_plan(compose("plan", "experiment=clm_ende_1024", "cluster=v100_1", *words), None)
    assert plan["speed"]["efficiency"] == pytest.approx(0.2)
    assert plan["budget"]["steps"] == 2  # begun steps are whole steps
    assert plan["cost"]["total"] == pytest.approx(plan["time"]["device_hours"])
    assert plan["energy"]["co2_kg"] == pytest.approx(plan["time"]["device_hours"] * 0.3 * 1.1 * 0.056)
    assert plan["network"]["exposed_seconds"] == 0.0
    given = make_plan(compose("plan", "experiment=clm_ende_1024", "plan.grams_co2_per_kwh=0"), None)
    assert given["energy"]["co2_kg"] == 0


def test_epochs_of_a_corpus(compose: Callable[..., dict[str, Any]], corpus_folder: Path) -> None:
    from xlm_train.data.corpus import Corpus

    corpus = Corpus(corpus_folder)
    words = ["experiment=smoke", "cluster=h100_8", "data.slots=8", "plan.epochs=3", f"data.path={corpus_folder}"]
    plan = make_plan(compose("plan", *words), corpus)
    windows = sum(corpus.stream("train", lang).n_windows(32) for lang in corpus.languages)
    assert plan["budget"]["steps"] == math.ceil(3 * windows * 32 / (8 * 4 * 32))
    assert plan["model"]["words"] == corpus.n_words
    # uniform over languages: the smaller one is read more often
    tokens, passes = plan["data"]["train_tokens"], plan["data"]["passes"]
    assert sum(tokens[lang] * passes[lang] for lang in tokens) == pytest.approx(plan["budget"]["tokens"])
    assert passes[min(tokens, key=tokens.__getitem__)] > 3
    shards = sum(file.stat().st_size for file in corpus_folder.glob("*.npy"))
    assert plan["data"]["disk_gb"] * 1e9 >= shards > 0


def test_notes_name_the_overrides_that_help(compose: Callable[..., dict[str, Any]]) -> None:
    words = ["experiment=clm_ende_1024", "cluster=v100_1", "data.slot_streams=512", "data.slots=8"]
    plan = make_plan(compose("plan", *words), None)
    assert not plan["memory"]["fits"]
    assert "does not fit: data.slot_streams=" in plan["notes"][0]
    smaller = dict(word.split("=") for word in plan["notes"][0].split(": ")[1].split(" needs ")[0].split())
    assert int(smaller["data.slot_streams"]) * int(smaller["data.slots"]) == 512 * 8
    fitting = make_plan(compose("plan", *words[:2], *(f"{key}={value}" for key, value in smaller.items())), None)
    assert fitting["memory"]["fits"]
    assert "trainer.devices=1 trainer.nodes=1" in " ".join(plan["notes"])
    slow = ["experiment=clm_ende_1024", "cluster=a100_8", "cluster.nodes=8", "cluster.inter_node_gbytes_per_s=0.1"]
    for more, compression in (
        ([], "fp16"),
        (["trainer.precision=bf16-mixed"], "powersgd"),
        (["trainer.precision=bf16-mixed", "callbacks.guard.policy=skip"], None),
        (["trainer.sharding=fsdp"], None),
    ):
        plan = make_plan(compose("plan", *slow, *more), None)
        assert plan["limits"]["network"]["binds"]
        advice = next(note for note in plan["notes"] if note.startswith("the network binds: "))
        assert compression is None or f"trainer.gradient_compression={compression}, or" in advice
        assert compression is not None or "gradient_compression" not in advice
    uneven = make_plan(compose("plan", "experiment=clm_ende_1024", "data.slots=250"), None)
    assert any("data.slots=256 is even" in note for note in uneven["notes"])


def test_the_critical_batch() -> None:
    assert critical_batch(1.0) == pytest.approx(2e8)
    assert critical_batch(2**0.21) == pytest.approx(1e8)
    assert critical_batch(3.0) == pytest.approx(1.07e6, rel=0.005)


@pytest.mark.parametrize(
    ("overrides", "binding", "reason"),
    [
        # 64 devices: a slot for each, and the published run's batch, which is about the critical one at a loss of 3
        (["cluster.nodes=8"], [], "0.98 times the critical batch of 1.07 M at a loss of 3"),
        (["cluster.nodes=8", "plan.loss=2.5"], [], "0.41 times the critical batch of 2.55 M"),
        # 1,024: the same batch, in slots of 4 streams; or slots as large as before, and 16 times the batch
        (["cluster.nodes=128", "data.slots=1024", "data.slot_streams=4"], ["network"], "2 times the fewest tokens"),
        (["cluster.nodes=128", "data.slots=1024"], ["network", "batch"], "17 times the fewest tokens"),
        (["cluster.disk_gbytes_per_s=0.05"], ["checkpoints"], "every 521 steps"),
    ],
)
def test_what_binds(
    overrides: list[str], binding: list[str], reason: str, compose: Callable[..., dict[str, Any]]
) -> None:
    plan = make_plan(compose("plan", "experiment=clm_ende_1024_h100", *overrides), None)
    limits = plan["limits"]
    assert [name for name, limit in limits.items() if limit["binds"]] == binding
    assert reason in " ".join(limit["reason"] for limit in limits.values())
    assert sum("bind" in note.partition(":")[0] for note in plan["notes"]) == len(binding)
    assert f"What binds: {', '.join(binding) or 'nothing'}" in as_text(plan)
    for limit in limits.values():
        assert limit["reason"] in as_text(plan)


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_is_whole(name: str, compose: Callable[..., dict[str, Any]]) -> None:
    cluster = cluster_file(name, compose)
    assert cluster.currency
    if name == "local":
        assert cluster.peak_tflops["32-true"] is None
        return
    assert cluster.devices_per_node * cluster.nodes == int(name.split("_")[1])
    assert name.split("_")[0].upper() in cluster.accelerator.replace(" ", "")
    assert f" {cluster.memory_gb:g} GB" in cluster.accelerator
    words = [f"cluster={name}", "trainer.precision=16-mixed", "data.slots=64"]
    plan = make_plan(compose("plan", *words), None)
    assert 0 < plan["speed"]["mfu"] <= plan["speed"]["efficiency"] + 1e-9 < 1
    assert plan["cost"]["total"] > 0
    assert plan["energy"]["kwh"] > 0
    source = (REPOSITORY / f"configs/cluster/{name}.yaml").read_text(encoding="utf-8")
    assert "data sheet" in source or "defaults:" in source
    for page in (as_text(plan), as_markdown(plan)):
        assert f"{plan['model']['parameters']:,}" in page
        assert "nan" not in page


def test_speed_of_a_measured_step() -> None:
    shape = ModelShape(n_words=1000, dim=64, n_layers=1, n_heads=4, ffn_dim=256)
    flops = flops_per_token(shape, 32, recompute=False)
    softmax = flops["output softmax"].total
    blocks = sum(part.total for part in flops.values()) - softmax
    parameters = 10**6
    true = Speed(blocks=2e9, softmax=4e9, update=1e8, memory=1e10, peak=8e9)
    tokens = 4 * 32
    parts = StepParts(tokens * blocks / true.blocks, tokens * softmax / true.softmax, parameters / true.update)
    found = speed_of(parts, shape, 4, 32, parameters, true.memory, true.peak)
    assert (found.blocks, found.softmax, found.update) == pytest.approx((true.blocks, true.softmax, true.update))
    assert slot_time(shape, flops, tokens, found).total == pytest.approx(parts.blocks + parts.loss)
    # one of several slots: its gradient of the vocabulary's matrix is scaled and added, five passes over it
    more = slot_time(shape, flops, tokens, found, accumulates=True).total - parts.blocks - parts.loss
    assert more == pytest.approx(5 * 4 * 1000 * 64 / 1e10)


@pytest.mark.parametrize(("layers", "streams"), [(6, 64), (2, 2), (1, 1)])
def test_the_probe_never_measures_the_planned_shape(layers: int, streams: int) -> None:
    shape = ModelShape(n_words=1000, dim=64, n_layers=layers, n_heads=4, ffn_dim=256)
    small, few = probe_shape(shape, streams, 32)
    assert small.n_layers != layers
    assert (small.dim, small.ffn_dim, small.n_words) == (shape.dim, shape.ffn_dim, shape.n_words)
    assert 1 <= few <= max(1, streams // 2)


# --- asked --------------------------------------------------------------------------------------------------------


def problems(*overrides: str) -> list[str]:
    import hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(REPOSITORY / "configs")):
        return problems_of_plan(hydra.compose("plan", overrides=["experiment=clm_ende_1024", *overrides]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_heads=7", "model.n_heads=8 would"),
        ("data.bptt=1024", "data.bptt=512 is the longest"),
        ("data.slots=32", "has 64 devices, but data.slots=32"),
        ("trainer.precision=bf16-mixed", "states no speed for it"),
        ("plan.region=mars", "must be one of world"),
        ("plan.tokens=-1", "must be positive"),
        ("plan.efficiency=40", "at most 1"),
        ("plan.pue=0.5", "at least 1"),
        ("plan.epochs=2", "data.path=CORPUS"),
        ("plan.probe=true", "measures this machine's CPU"),
        ("plan.price_per_gpu_hour=cheap", "must be a number or null"),
        ("cluster.inter_node_gbytes_per_s=null", "the gradients of 64 devices go over it"),
        ("cluster.efficiency=null", "give plan.efficiency"),
        ("cluster.nodes=0", "must be at least 1"),
        ("data.path=nowhere", "there is no such folder"),
    ],
)
def test_each_mistake_names_its_override(override: str, message: str) -> None:
    found = problems(override)
    assert len(found) == 1, found
    assert message in found[0]


def test_a_plan_for_devices_that_are_elsewhere_is_no_mistake() -> None:
    assert problems() == []
    assert problems("plan.tokens=1000", "trainer.max_steps=null") == []


def test_all_mistakes_are_reported_together() -> None:
    found = problems("model.n_heads=7", "plan.region=mars", "data.slots=32", "data.path=nowhere")
    assert len(found) == 4


def test_the_command(tmp_path: Path) -> None:
    words = ["experiment=clm_ende_1024", "cluster=a100_8", f"out={tmp_path / 'new' / 'plan'}"]
    result = command("xlm_train.commands.plan", *words, cwd=tmp_path)
    plan = json.loads((tmp_path / "new/plan/plan.json").read_text())
    assert plan["cluster"]["accelerator"].startswith("A100")
    for word in ("parameters", "output softmax", "Memory of a device", "tokens/s", "Network", "kWh", "Notes"):
        assert word in result.stdout
        assert word in (tmp_path / "new/plan/plan.md").read_text()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ["experiment=clm_ende_1024", "plan.region=mars", "out=file", "data.slots=2"]
    result = command("xlm_train.commands.plan", *words, status=2, cwd=tmp_path)
    assert "3 problems" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_this_machine_is_measured_by_itself(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("plan", "experiment=smoke", "plan.n_words=500")
    plan = make_plan(config, None)
    assert plan["cluster"]["devices"] == 1
    assert plan["speed"]["source"].startswith("measured just now on this machine")
    assert 0 < plan["speed"]["efficiency"] < 1
    assert plan["cost"]["total"] is None
    assert "unknown: cluster.watts" in as_text(plan)


def test_a_probe_can_be_forbidden() -> None:
    found = problems("cluster=local", "trainer.precision=32-true", "plan.probe=false")
    assert len(found) == 1
    assert "plan.probe=true measures" in found[0]


# --- against this machine -----------------------------------------------------------------------------------------

ONE_THREAD = """
import json, sys, time
import torch
from xlm_train.model.transformer import ModelShape
from xlm_train.runtime.device import disable_malloc_trim

torch.set_num_threads(1)
disable_malloc_trim()

def highest():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
"""

CHILD = f"""{ONE_THREAD}
from xlm_train.plan.probe import RealStep

warm = RealStep(ModelShape(n_words=50, dim=16, n_layers=1, n_heads=2, ffn_dim=32), 2, 8)
warm.run(), warm.run()  # loads what PyTorch loads at first use
del warm
resident = highest()
shape, streams, positions, slots = json.loads(sys.argv[1])
step = RealStep(ModelShape(**shape), streams, positions, slots, clock=time.process_time)
step.run()
print(json.dumps(["ready"]), flush=True)
for line in sys.stdin:
    parts = step.run()
    print(json.dumps([parts.blocks + parts.loss + parts.update, highest() - resident]), flush=True)
"""

SHAPES = [
    # the demo's; one with dropout and a wide vocabulary; the real width, with as many words as the demo's
    ({"n_words": 2478, "dim": 256, "n_layers": 4, "n_heads": 4, "ffn_dim": 1024, "dropout": 0.0, "attention_dropout": 0.0}, 8, 63, 2),
    ({"n_words": 20_000, "dim": 512, "n_layers": 6, "n_heads": 8, "ffn_dim": 2048}, 4, 127, 1),
    ({"n_words": 2478, "dim": 1024, "n_layers": 3, "n_heads": 8, "ffn_dim": 4096}, 2, 255, 1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "streams", "positions", "slots"), SHAPES)
def test_against_this_machine(arguments: dict[str, Any], streams: int, positions: int, slots: int) -> None:
    """Memory within 15 %, time within 25 %. Time is processor time of one thread, which other programs change little;
    steps and probes are taken in turn."""
    import time

    from xlm_train.plan.probe import measure
    from xlm_train.runtime.device import disable_malloc_trim

    disable_malloc_trim()
    shape = ModelShape(**arguments)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps([arguments, streams, positions, slots])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=process_environment(), cwd=REPOSITORY,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert json.loads(child.stdout.readline()) == ["ready"]
    parameters = sum(math.prod(size) for size in parameter_shapes(shape).values())
    flops = flops_per_token(shape, positions, recompute=False)
    for _ in range(3):  # other programs can only drive them apart: one try has to agree
        measured, predicted, peak = [], [], 0
        for _ in range(4):
            speed = measure(shape, streams, positions, seconds=1.5, clock=time.process_time)
            slot = slot_time(shape, flops, streams * positions, speed, slots > 1)
            predicted.append(slots * slot.total + parameters / speed.update)
            for _ in range(3):
                child.stdin.write("step\n")
                child.stdin.flush()
                seconds, peak = json.loads(child.stdout.readline())
                measured.append(seconds)
        if median(predicted) == pytest.approx(median(measured), rel=0.25):
            break
    child.stdin.close()
    assert child.wait(timeout=PATIENCE) == 0
    memory = sum(peak_memory(shape, parameters, setting(streams=streams, positions=positions, slots=slots)).values())
    print(
        f"memory {memory / 1e6:.0f} of {peak / 1e6:.0f} MB ({memory / peak - 1:+.1%}),"
        f" time {median(predicted):.3f} of {median(measured):.3f} s ({median(predicted) / median(measured) - 1:+.1%})"
    )
    assert memory == pytest.approx(peak, rel=0.15)
    assert median(predicted) == pytest.approx(median(measured), rel=0.25)


def test_a_run_on_pairs_alone_is_planned_by_its_batches(
    compose: Callable[..., dict[str, Any]],
    make_corpus: Callable[..., Path],
    golden_text: tuple[str, str],
    tmp_path: Path,
) -> None:
    train = {"de": [[20] * 7, [21] * 3], "en": [[22] * 5, [23] * 4]}
    folder = make_corpus(tmp_path / "corpus", *golden_text, {}, {"de": 0, "en": 1}, pairs={"train": {"de-en": train}})
    words = ["experiment=demo", "objective=tlm", "data.tokens_per_slot=600", "cluster=v100_1", "plan.epochs=1000"]
    plan = make_plan(compose("plan", *words), Corpus(folder))
    once = 7 + 3 + 5 + 4 + 2 * 4  # words, and four eos a pair
    assert plan["step"]["tokens"] == 2 * 600
    assert (plan["step"]["streams_per_slot"], plan["step"]["window"]) == (2, 204)
    assert plan["data"]["train_tokens"] == {"de-en": once}
    assert plan["budget"]["steps"] == math.ceil(1000 * once / 1200)


# --- translation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dropout", "attention_dropout"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.1)])
@pytest.mark.parametrize(("source", "positions"), [(17, 11), (40, 150)])
def test_activations_of_translation_are_what_autograd_keeps(
    dropout: float, attention_dropout: float, source: int, positions: int
) -> None:
    shape = ModelShape(
        n_words=60, dim=32, n_layers=3, n_heads=4, ffn_dim=80, dropout=dropout, attention_dropout=attention_dropout
    )
    model = Seq2Seq(shape)
    sources, targets = torch.randint(60, (2, source)), torch.randint(60, (2, positions))
    lengths = torch.full((2,), source)
    kept = kept_for_backward(model, lambda: model(sources, 0, lengths, targets, 1))
    predicted = activation_bytes(shape, setting(streams=2, positions=positions, source=source))
    assert predicted == pytest.approx(kept, rel=0.002)


@pytest.mark.parametrize("share", ["none", "embeddings"])
def test_gradients_of_translation_arrive_in_the_order_assumed(share: str) -> None:
    shape = ModelShape(n_words=50, dim=16, n_layers=3, n_heads=2, ffn_dim=64, max_positions=20)
    model, arrived = Seq2Seq(shape, share=share), []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    batch = translation_batch([[1, 20, 21, 1]], 0, [[1, 30, 31, 32, 1]], 1)
    batch.loss(model).backward()
    assert arrived[0] == "decoder.output_bias"
    assert arrived[-1] == "encoder.embeddings.weight"
    sides = [name.split(".")[0] for name in arrived if ".blocks." in name]
    assert sides == sorted(sides)  # all of the decoder's before the first of the encoder's
    parameters = parameter_shapes(shape, translates=True, share=share)
    gradients = gradients_of(parameters, 3)
    assert len(gradients) == len(arrived)
    assert sum(gradient.elements for gradient in gradients) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert gradients[-1].shape == (50, 16)
    assert [gradient.ready for gradient in gradients] == sorted(gradient.ready for gradient in gradients)


def test_the_real_translation_runs(compose: Callable[..., dict[str, Any]]) -> None:
    umt, mt = (make_plan(compose("plan", f"experiment={name}_ende_1024"), None) for name in ("umt", "mt"))
    assert umt["model"]["parameters"] == mt["model"]["parameters"] == 310_057_344
    assert umt["step"]["tokens"] == mt["step"]["tokens"] == 16_000
    # by hand, for 30 tokens a sentence: 2,000 / 30 sentences a slot; 28 D^2 of weights a layer, 44 D^2 of products
    shape = ModelShape(n_words=64699, vocab_multiple=8)
    once = row_flops(shape, Row(30, 29, source=30, decodes=True), recompute=False)
    learned = 3 * (6 * 2 * 1024**2 * (12 * 59 + 2 * 59) + 2 * 64704 * 1024 * 29)
    assert sum(p.total for name, p in once.items() if name != DECODING) == pytest.approx(learned, rel=0.01)
    speed = 15.7e12 * 0.4
    decoding = 29 * 6 * LAYER_SECONDS + 2000 / 30 * once[DECODING].forward / speed / FEW_ROWS
    training = 2000 / 30 * sum(p.total for name, p in once.items() if name != DECODING) / speed
    update = 44 * 310_057_344 / 900e9
    network = umt["network"]
    assert network["compute_seconds"] == pytest.approx(training + decoding / 2 + update)
    assert umt["speed"]["back_translation"] == pytest.approx(decoding / 2 / umt["speed"]["seconds_per_step"])
    assert mt["speed"]["back_translation"] is None
    assert umt["time"]["hours"] > 2 * mt["time"]["hours"]
    for page in (as_text(umt), as_markdown(umt)):
        assert "making back-translations" in page
        assert "back-translation  " in page or "back-translation |" in page
    assert "making back-translations" not in as_text(mt)
    # the longest: 19 sentences of 102 tokens, whose translations may have 137
    assert (umt["step"]["streams_per_slot"], umt["step"]["window"]) == (19, 102)
    assert umt["memory"]["peak_gb"] > mt["memory"]["peak_gb"]


def test_a_mixture_is_planned_by_its_shares(compose: Callable[..., dict[str, Any]]) -> None:
    mlm, tlm, both = (
        make_plan(compose("plan", "experiment=mlm_tlm_ende_1024", *words), None)
        for words in (("objective=mlm",), ("objective=tlm",), ())
    )
    tokens = [plan["step"]["tokens"] for plan in (mlm, tlm, both)]
    assert tokens == [128 * 4096, 128 * 1000, round(128 * (2 * 4096 + 1000) / 3)]
    seconds = [plan["network"]["compute_seconds"] for plan in (mlm, tlm, both)]
    assert seconds[2] == pytest.approx((2 * seconds[0] + seconds[1]) / 3)


def test_a_corpus_says_how_long_sentences_are(
    compose: Callable[..., dict[str, Any]],
    make_corpus: Callable[..., Path],
    golden_text: tuple[str, str],
    tmp_path: Path,
) -> None:
    train = {"de": [[20] * 7, [21] * 3], "en": [[22] * 5, [23] * 4]}
    folder = make_corpus(tmp_path / "corpus", *golden_text, {"train": train}, {"de": 0, "en": 1})
    words = ["experiment=umt_ende_1024", "cluster=v100_8", "plan.epochs=10"]
    plan = make_plan(compose("plan", *words), Corpus(folder))
    once = {"de": 7 + 3 + 4, "en": 5 + 4 + 4}
    assert plan["data"]["train_tokens"] == once
    assert plan["budget"]["steps"] == math.ceil(10 * 27 / 16000)
    assert plan["data"]["passes"] == pytest.approx({name: 8000 / size for name, size in once.items()})
    assert plan["step"]["predicted"] == round(16000 * (1 - 1 / (27 / 4)))


TRANSLATING = f"""{ONE_THREAD}
from xlm_train.model.seq2seq import Seq2Seq
from xlm_train.objectives.translation import translation_batch

def steps(shape, streams, source, positions, slots, n):
    model = Seq2Seq(shape)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    words = lambda length: [[1, *torch.randint(20, shape.n_words, (length - 2,)).tolist(), 1] for _ in range(streams)]
    for _ in range(n):
        for _ in range(slots):
            (translation_batch(words(source), 0, words(positions + 1), 1).loss(model) / slots).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

steps(ModelShape(n_words=50, dim=16, n_layers=1, n_heads=2, ffn_dim=32), 2, 8, 7, 1, 2)
resident = highest()
shape, *sizes = json.loads(sys.argv[1])
steps(ModelShape(**shape), *sizes, 6)
print(highest() - resident)
"""
DEMO = {"n_words": 2478, "dim": 256, "n_layers": 4, "n_heads": 4, "ffn_dim": 1024}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "streams", "source", "positions", "slots"),
    [
        ({**DEMO, "dropout": 0.0, "attention_dropout": 0.0}, 16, 30, 29, 2),
        (DEMO, 32, 40, 29, 1),
        ({**DEMO, "n_words": 20_000, "dim": 512, "ffn_dim": 2048}, 20, 60, 49, 1),
    ],
)  # fmt: skip
def test_memory_of_translation_against_this_machine(
    arguments: dict[str, Any], streams: int, source: int, positions: int, slots: int
) -> None:
    """Within 20 %: the shares of holes were measured on language models."""
    child = subprocess.run(
        [sys.executable, "-c", TRANSLATING, json.dumps([arguments, streams, source, positions, slots])],
        capture_output=True, text=True, env=process_environment(), cwd=REPOSITORY, check=True,
    )  # fmt: skip
    shape, peak = ModelShape(**arguments), int(child.stdout)
    parameters = sum(math.prod(size) for size in parameter_shapes(shape, translates=True).values())
    run = setting(streams=streams, positions=positions, source=source, slots=slots)
    memory = sum(peak_memory(shape, parameters, run).values())
    print(f"memory {memory / 1e6:.0f} of {peak / 1e6:.0f} MB ({memory / peak - 1:+.1%})")
    assert memory == pytest.approx(peak, rel=0.20)
