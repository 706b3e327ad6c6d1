"""What keeps more devices from making a run faster: the network, the size of a step's batch, checkpoints; with the reasons."""

from __future__ import annotations

from typing import Any

from xlm_train.runtime.console import compact

BINDS = 0.10  # share of the time from which waiting for the network, or for checkpoints, is called binding
# Critical batch of a causal language model by its loss in nats a token. Source: Kaplan et al. 2020, equation 1.4.
CRITICAL_TOKENS = 2e8  # at a loss of 1
EXPONENT = 0.21


def critical_batch(loss: float) -> float:
    """Tokens of a step at which training takes twice the fewest steps, and twice the fewest tokens, that reach a loss.

    With a batch of b times as many it takes 1 + 1/b times the fewest steps and 1 + b times the fewest tokens.

    Args:
        loss: In nats a token.

    Source: McCandlish et al. 2018, equation 2.11; Kaplan et al. 2020, section 5.1.
    """
    return CRITICAL_TOKENS * loss ** (-1 / EXPONENT)


def limits_of(plan: dict[str, Any], loss: float) -> dict[str, dict[str, Any]]:
    """Say of each limit how near it is, whether it binds, and why.

    Args:
        plan: The figures of a plan: cluster, step, network and checkpoint.
        loss: At which the batch is compared with the critical one.

    Returns:
        By its name: `share`, of the time that is waited, or of the critical batch; `binds`; `reason`.
    """
    network, checkpoint, devices = plan["network"], plan["checkpoint"], plan["cluster"]["devices"]
    critical = critical_batch(loss)
    batch = plan["step"]["predicted"] / critical
    waits = (
        f"a step waits {network['exposed_seconds']:.3f} s of {plan['speed']['seconds_per_step']:.3f} s for gradients; reducing"
        f" {network['gradient_gb']:.2f} GB takes {network['all_reduce_seconds']:.3f} s, {network['latency_seconds']:.3f} s of it"
        f" the latency of messages, and {network['overlap_seconds']:.3f} s of backward pass hide a part"
    )
    reads = (
        f"{compact(plan['step']['predicted'])} predicted tokens a step are {batch:.2g} times the critical batch of"
        f" {compact(critical)} at a loss of {loss:g}: {1 + 1 / batch:.2g} times the fewest steps, {1 + batch:.2g} times the"
        f" fewest tokens; twice the batch would save {1 - (1 + 0.5 / batch) / (1 + 1 / batch):.0%} of the steps"
    )
    writes = (
        f"{checkpoint['stall_seconds']:.1f} s for {checkpoint['gb']:.2f} GB every {checkpoint['every_n_steps']:,} steps, which"
        f" take {checkpoint['every_n_steps'] * plan['speed']['seconds_per_step']:,.0f} s"
    )
    return {
        "network": {
            "share": network["exposed_share"],
            "binds": network["exposed_share"] > BINDS,
            "reason": waits if devices > 1 else "one device: nothing to reduce",
        },
        "batch": {"share": batch, "binds": batch >= 1.0, "reason": reads},
        "checkpoints": {
            "share": checkpoint["stall_share"], "binds": checkpoint["stall_share"] > BINDS, "reason": writes,
        },
    }  # fmt: skip
