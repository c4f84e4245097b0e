"""Callbacks in a process that can start only so many threads."""

import threading

import pytest

from prefect_ray_worker.adhoc.done_callbacks import DoneCallbacks


def test_call_without_a_thread_is_an_error_once_and_later_ones_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each later wait for that run hung, and the other calls were lost."""
    callbacks, may_end, both = DoneCallbacks(), threading.Event(), threading.Event()
    made: list[str] = []
    start, left = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    def last() -> None:
        made.append("last")
        both.set()

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="new thread"):
        callbacks.add(lambda: made.append("never"), may_end.wait)
    left = 1
    callbacks.add(lambda: made.append("first"), may_end.wait)
    callbacks.add(last, may_end.wait)
    may_end.set()
    assert both.wait(5)
    assert made == ["first", "last"]
