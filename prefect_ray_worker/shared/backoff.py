"""How long to wait before asking again: exponential, jittered, bounded."""

import random

_LONGEST_SECONDS = 30.0
_JITTER = 0.2


class Backoff:
    """Count failures in a row and return the wait after each.

    Args:
        initial: Wait after the first failure, in seconds. It doubles up to the longest. A jitter
            of 20 % either way keeps many workers from asking at the same moment.
        longest: The longest wait, in seconds.
    """

    def __init__(self, initial: float = 1.0, *, longest: float = _LONGEST_SECONDS) -> None:
        self._initial = initial
        self._longest = longest
        self._failures = 0

    def next(self) -> float:
        """Count one more failure and return the seconds to wait."""
        wait = min(self._initial * 2**self._failures, self._longest)
        self._failures = min(self._failures + 1, 16)
        return jittered(wait)

    def reset(self) -> None:
        """Forget the failures after an answer."""
        self._failures = 0


def jittered(seconds: float) -> float:
    """Return a duration within 20 % of the given one."""
    return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 (not a secret)
