"""What the metrics of this process say."""

from prometheus_client import REGISTRY


def value(name: str, **labels: str) -> float:
    """Return a sample, or 0 if there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Change:
    """How much a sample has changed since this was made: metrics outlive a test."""

    def __init__(self, name: str, **labels: str) -> None:
        self._name, self._labels = name, labels
        self._before = value(name, **labels)

    def __call__(self) -> float:
        return value(self._name, **self._labels) - self._before
