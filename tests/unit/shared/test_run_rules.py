"""Rules that the worker and the driver both follow."""

import pytest

from prefect_ray_worker.shared.run_rules import (
    Patience,
    is_passing,
    pauses_in_process,
    waits_in_process,
)


@pytest.mark.parametrize(
    ("state_type", "retry_type", "waits"),
    [
        ("SCHEDULED", "in_process", True),
        ("SCHEDULED", "reschedule", False),
        ("SCHEDULED", None, False),
        ("RUNNING", "in_process", False),
    ],
)
def test_a_run_that_waits_in_its_process(
    state_type: str, retry_type: str | None, waits: bool
) -> None:
    assert waits_in_process(state_type, retry_type) is waits


@pytest.mark.parametrize(
    ("state_type", "pause_reschedule", "pauses"),
    [
        ("PAUSED", False, True),
        ("PAUSED", None, True),
        ("PAUSED", True, False),  # suspended: another process resumes it
        ("RUNNING", False, False),
    ],
)
def test_a_run_that_is_paused_in_its_process(
    state_type: str, pause_reschedule: bool | None, pauses: bool
) -> None:
    assert pauses_in_process(state_type, pause_reschedule) is pauses


@pytest.mark.parametrize(
    ("code", "passes"), [(500, True), (503, True), (408, True), (429, True), (404, False)]
)
def test_errors_that_pass(code: int, passes: bool) -> None:
    assert is_passing(code) is passes


def test_patience_grows_and_ends_at_its_limit() -> None:
    patience = Patience(20, now=100.0)
    now, waits = 100.0, list[float]()
    while (wait := patience.wait(now)) is not None:
        waits.append(wait)
        now += wait
    assert now == pytest.approx(120), "it asks once more at the very end"
    assert waits[0] < 1.3
    assert waits[1] > waits[0]
    assert len(waits) < 10
