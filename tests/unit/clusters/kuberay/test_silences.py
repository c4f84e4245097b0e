"""Since when the dashboard of a shared cluster has not answered."""

from datetime import UTC, datetime, timedelta

from prefect_ray_worker.clusters.kuberay.silences import Silences

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_a_silence_lasts_from_its_first_look_to_the_next_answer() -> None:
    silences = Silences()
    for minutes in (0, 4, 8, 20):
        assert silences.notice("a", NOON + minutes * MINUTE) == NOON
    assert silences.notice("b", NOON + 20 * MINUTE) == NOON + 20 * MINUTE
    silences.end("a")
    silences.end("c")
    assert silences.notice("a", NOON + 21 * MINUTE) == NOON + 21 * MINUTE


def test_two_looks_that_are_far_apart_are_not_one_silence() -> None:
    """A single failure before, and one after, an hour without a sweep deleted a cluster."""
    silences = Silences()
    silences.notice("a", NOON)
    assert silences.notice("a", NOON + 60 * MINUTE) == NOON + 60 * MINUTE


def test_a_cluster_that_is_gone_is_forgotten() -> None:
    silences = Silences()
    silences.notice("a", NOON)
    silences.keep(["b"])
    assert silences.notice("a", NOON + MINUTE) == NOON + MINUTE
