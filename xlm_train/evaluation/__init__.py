"""How well a model predicts text."""


def loss_of(metric: str, value: float) -> float:
    """A value of a validation's metric as one that is smallest where it is best: negative where higher is better."""
    return -value if metric.startswith(("val/acc", "val/bleu", "val/chrf")) else value
