"""`SweepTurns`: the chosen worker deletes at once, and another one if that does not."""

from prefect_ray_worker.clusters.turns import SweepTurns


def sweep(turns: SweepTurns, *unneeded: str, is_mine: bool = False) -> list[str]:
    turns.begin()
    return [key for key in unneeded if turns.is_due(key, is_mine=is_mine)]


def test_the_chosen_worker_deletes_at_once() -> None:
    assert sweep(SweepTurns(), "a", is_mine=True) == ["a"]


def test_another_worker_deletes_what_it_finds_in_three_sweeps_in_a_row() -> None:
    turns = SweepTurns()
    assert sweep(turns, "a") == []
    assert sweep(turns, "a", "b") == []
    assert sweep(turns, "a", "b") == ["a"]
    assert sweep(turns, "a", "b") == ["a", "b"], "its deletion failed"


def test_a_cluster_that_was_needed_in_between_is_counted_anew() -> None:
    turns = SweepTurns()
    assert not sweep(turns, "a")
    assert not sweep(turns, "a")
    assert not sweep(turns)
    assert not sweep(turns, "a")
    assert not sweep(turns, "a")
    assert sweep(turns, "a") == ["a"]


def test_costly_looks_are_rare_until_something_is_found() -> None:
    turns, looked = SweepTurns(), 0
    for _ in range(30):
        turns.begin()
        assert turns.looks("a", is_mine=True)
        looked += turns.looks("a", is_mine=False)
    assert looked == 10
    sweep(turns, "a")
    turns.begin()
    assert turns.looks("a", is_mine=False)
