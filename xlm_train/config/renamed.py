"""Names of earlier versions: users' configs and old runs may say them, and get today's."""

from __future__ import annotations

from typing import Any

# Config keys, dotted.
KEYS = {"callbacks.interruption": "callbacks.preemption"}
# Modules of classes that configs name in `_target_`.
MODULES = {
    "xlm_train.optim": "xlm_train.training.optim",
    "xlm_train.schedule": "xlm_train.training.schedule",
    "xlm_train.loggers": "xlm_train.training.loggers",
}
# Keys that configs did not have: what was done then.
ADDED = {
    "data.tokens_per_slot": 2000,
    "data.max_len": 100,
    "model.ops": "fast",
    "model.share": "none",
    "init_encoder": None,
    "init_decoder": None,
    "storage": {"url": None, "max_behind": 2, "lease_seconds": 60, "wait_seconds": 600},
    "objective": {"_target_": "xlm_train.objectives.clm.CausalLM", "_partial_": True},
}


def with_new_names(config: dict[str, Any]) -> dict[str, Any]:
    """Say a config of any version, resolved or not, in today's names; nothing else is changed.

    Args:
        config: Nested mapping, such as the content of an old run's config.yaml. It is not changed.
    """
    return _renamed(config)[0]


def renamings(config: dict[str, Any]) -> list[str]:
    """List the old names in a config, each with today's: `callbacks.interruption is now callbacks.preemption`."""
    return _renamed(config)[1]


def new_key(key: str) -> str:
    """Give today's name of a dotted key, which may lie below a renamed one."""
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def _renamed(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    found: list[str] = []

    def copy(value: Any, prefix: str) -> Any:
        if isinstance(value, list):
            return [copy(item, prefix) for item in value]
        if isinstance(value, dict):
            return _merged(value, prefix)
        if prefix.endswith("._target_.") and isinstance(value, str):
            module, _, name = value.rpartition(".")
            if module in MODULES:
                found.append(f"{prefix[:-1]}={value} is now {MODULES[module]}.{name}")
                return f"{MODULES[module]}.{name}"
        return value

    def _merged(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in values.items():
            name = f"{prefix}{key}"
            new = KEYS.get(name, name)
            if new != name:
                found.append(f"{name} is now {new}")
            new = new.rpartition(".")[2]
            value = copy(value, f"{name}.")
            if isinstance(value, dict) and isinstance(result.get(new), dict):
                value = {**result[new], **value}  # both names at once: what comes later counts
            result[new] = value
        return result

    result = copy(config, "")
    for key, value in ADDED.items():
        section, _, name = key.rpartition(".")
        inside = result.get(section) if section else result
        if isinstance(inside, dict):
            inside.setdefault(name, value)
    return result, found
