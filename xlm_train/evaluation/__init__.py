"""How well a model predicts text."""


def higher_is_better(metric: str) -> bool:
    """Say whether the largest value of a validation's metric is the best one."""
    return metric.startswith(("val/acc", "val/bleu", "val/chrf"))
