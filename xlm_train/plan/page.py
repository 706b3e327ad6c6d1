"""A plan as tables: aligned for the terminal, in Markdown for a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xlm_train.report.html import Table, markdown_text
from xlm_train.runtime.console import compact


def tables(plan: dict[str, Any]) -> list[Table]:
    """The tables of a plan."""
    return [
        _model(plan), _flops(plan), _memory(plan), _speed(plan), _network(plan), _limits(plan), _run(plan), _disk(plan), _price(plan),
    ]  # fmt: skip


def as_text(plan: dict[str, Any]) -> str:
    """Write a plan for a terminal."""
    lines = []
    for table in tables(plan):
        lines += [table.caption, *(f"  {line}" for line in table.text().splitlines()), ""]
    return "\n".join([*lines, "Notes", *(f"  - {note}" for note in plan["notes"])])


def as_markdown(plan: dict[str, Any]) -> str:
    """Write a plan for plan.md."""
    parts = [f"# Plan: {plan['cluster']['name']}"]
    for table in tables(plan):
        parts += [f"## {markdown_text(table.caption)}", replace(table, caption="").markdown()]
    return "\n\n".join([*parts, "## Notes", "\n".join(f"- {note}" for note in plan["notes"])]) + "\n"


def _model(plan: dict[str, Any]) -> Table:
    model, step, cluster = plan["model"], plan["step"], plan["cluster"]
    where = "of the corpus" if model["from_corpus"] else "assumed"
    of_slot = "streams" if step["reads"] == "windows" else step["reads"]
    return Table(
        f"{cluster['name']}: {cluster['devices']} x {cluster['accelerator']}",
        [],
        [
            ["parameters", f"{model['parameters']:,}"],
            ["  of them embeddings, tied with the output", f"{model['embeddings']:,}"],
            [f"  of them in blocks{' of both sides' if model['translates'] else ''}", f"{model['blocks']:,}"],
            [f"vocabulary, {where}", f"{model['words']:,}"],
            ["tokens a step", f"{step['tokens']:,}"],
            ["  of them predicted", f"{step['predicted']:,}"],
            ["slots a device and step, one after the other", f"{step['slots_per_device']}"],
            [f"{of_slot} x tokens of a slot, the longest", f"{step['streams_per_slot']} x {step['window']}"],
        ],
    )


def _flops(plan: dict[str, Any]) -> Table:
    parts = plan["flops_per_token"]
    kinds = ("forward", "backward", "recompute", "total")
    total = {kind: sum(part[kind] for part in parts.values()) for kind in kinds}
    rows = [
        [name, *(f"{part[kind] / 1e6:.1f}" for kind in kinds), f"{part['total'] / total['total']:.0%}"]
        for name, part in parts.items()
    ]
    rows.append(["all", *(f"{total[kind] / 1e6:.1f}" for kind in kinds), "100%"])
    share = plan["step"]["mask_share"]
    caption = "MFLOP a predicted token" if share is None else f"MFLOP a token, of which {share:.0%} are predicted"
    if plan["model"]["translates"]:
        caption = "MFLOP a token of what is read, on both sides"
    return Table(caption, ["part", *kinds, "share"], rows)


def _memory(plan: dict[str, Any]) -> Table:
    memory = plan["memory"]
    rows = [[name, f"{size:.3f}"] for name, size in plan["memory_gb"].items()]
    rows.append(["peak", f"{memory['peak_gb']:.3f}"])
    rows.append(["available", f"{memory['available_gb']:.3f}"])
    return Table(
        f"Memory of a device, GB: {'fits' if memory['fits'] else 'DOES NOT FIT'}",
        [],
        rows,
        note=f"{plan['step']['precision']}{', activations recomputed' if plan['step']['recompute'] else ''}",
    )


def _speed(plan: dict[str, Any]) -> Table:
    speed, decoding = plan["speed"], plan["speed"]["back_translation"]
    return Table(
        "Speed",
        [],
        [
            ["tokens/s, all devices", f"{speed['tokens_per_second']:,.0f}"],
            ["seconds a step", f"{speed['seconds_per_step']:.3f}"],
            ["peak of a device, TFLOP/s", f"{speed['peak_tflops_per_device']:.3g}"],
            ["efficiency of forward and backward", f"{speed['efficiency']:.1%}"],
            ["model FLOPs utilisation, network and update included", f"{speed['mfu']:.1%}"],
            *([] if decoding is None else [["share of a step that making back-translations takes", f"{decoding:.0%}"]]),
        ],
        note=f"efficiency: {speed['source']}",
    )


def _network(plan: dict[str, Any]) -> Table:
    network = plan["network"]
    if plan["cluster"]["devices"] == 1:
        return Table("Network", [], [["one device: nothing to reduce", ""]])
    rows = [
        ["gradients, GB", f"{network['gradient_gb']:.3f}"],
        ["  of them in the last bucket, which nothing hides", f"{network['last_bucket_gb']:.3f}"],
        ["compute of a step, s", f"{network['compute_seconds']:.3f}"],
        ["  of it the last backward pass, which hides reductions, s", f"{network['overlap_seconds']:.3f}"],
        ["all-reduce of a step, s", f"{network['all_reduce_seconds']:.3f}"],
        ["  of it waited for, s", f"{network['exposed_seconds']:.3f}"],
        ["  as a share of the step", f"{network['exposed_share']:.1%}"],
    ]
    rows += [[f"a step with compression {name}, s", f"{s:.3f}"] for name, s in network["seconds_per_step"].items()]
    return Table(
        "Network",
        [],
        rows,
        note=f"planned with compression {network['compression'] or 'none'}",
    )


def _limits(plan: dict[str, Any]) -> Table:
    limits = plan["limits"]
    binding = ", ".join(name for name, limit in limits.items() if limit["binds"]) or "nothing"
    return Table(
        f"What binds: {binding}",
        [],
        [
            ["network, of the time", f"{limits['network']['share']:.1%}", limits["network"]["reason"]],
            ["batch, of the critical one", f"{limits['batch']['share']:.0%}", limits["batch"]["reason"]],
            ["checkpoints, of the time", f"{limits['checkpoints']['share']:.2%}", limits["checkpoints"]["reason"]],
        ],
        words=True,
        note="the critical batch was measured on causal language models (Kaplan et al. 2020): an order of magnitude for others",
    )


def _run(plan: dict[str, Any]) -> Table:
    budget, hours = plan["budget"], plan["time"]["hours"]
    time = f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    rows = [
        ["steps", f"{budget['steps']:,}"],
        ["tokens", compact(budget["tokens"])],
        ["time, checkpoints included", time],
        ["device hours", f"{plan['time']['device_hours']:,.1f}"],
    ]
    if plan["data"] is not None:
        rows += [[f"passes through {lang}", f"{passes:.2f}"] for lang, passes in plan["data"]["passes"].items()]
    return Table("The run", [], rows, note=f"length: {budget['source']}")


def _disk(plan: dict[str, Any]) -> Table:
    checkpoint, data = plan["checkpoint"], plan["data"]
    return Table(
        "Disk",
        [],
        [
            ["a checkpoint, GB", f"{checkpoint['gb']:.3f}"],
            [f"the {checkpoint['kept']} that are kept, GB", f"{checkpoint['disk_gb']:.2f}"],
            [f"writing one, every {checkpoint['every_n_steps']:,} steps, s", f"{checkpoint['stall_seconds']:.1f}"],
            ["corpus, GB", "unknown: data.path" if data is None else f"{data['disk_gb']:.2f}"],
        ],
    )


def _price(plan: dict[str, Any]) -> Table:
    cost, energy, currency = plan["cost"], plan["energy"], plan["cost"]["currency"]
    if cost["total"] is None:
        rows = [["cost", "unknown: plan.price_per_gpu_hour"]]
    else:
        price = f"{cost['per_device_hour']:.2f} {currency}"
        rows = [[f"cost at {price} a device and hour", f"{cost['total']:,.0f} {currency}"]]
    if energy["kwh"] is None:
        rows.append(["energy", "unknown: cluster.watts"])
    else:
        power, grid = f"{energy['watts_per_device']:.0f} W", f"{energy['grams_co2_per_kwh']:.0f} g/kWh"
        rows.append([f"energy at {power} a device, PUE {energy['pue']}", f"{energy['kwh']:,.1f} kWh"])
        rows.append([f"CO2 at {grid} ({energy['region']})", f"{energy['co2_kg']:,.1f} kg"])
    note = "the price is an example until you give yours; the energy is an estimate from stated power"
    return Table("Price", [], rows, note=note)
