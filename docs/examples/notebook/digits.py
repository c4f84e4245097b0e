"""A module beside the notebook; it travels with each call."""

import threading
from collections.abc import Sequence

_LOCK = threading.Lock()  # cannot be pickled, and need not be: modules travel as files


def mean_of_squares(numbers: Sequence[int]) -> float:
    if not numbers:
        raise ValueError("there is no mean of nothing")
    with _LOCK:
        return sum(n * n for n in numbers) / len(numbers)
