"""Lines of a log that is too fast are joined, and only what belongs together."""

from prefect_ray_worker.logs.joining import Line, joined


def lines(*messages: str, level: int = 20, at: int = 0) -> list[Line]:
    return [Line(level, message, at) for message in messages]


def test_lines_stay_single_where_there_is_time() -> None:
    single = lines("a", "b", "c")
    assert list(joined(single, most=1, longest=1000)) == single


def test_neighbours_are_joined_up_to_a_number() -> None:
    found = list(joined(lines("a", "b", "c", "d", "e"), most=2, longest=1000))
    assert [(line.message, line.lines) for line in found] == [("a\nb", 2), ("c\nd", 2), ("e", 1)]


def test_another_level_or_time_begins_anew() -> None:
    mixed = [*lines("a"), *lines("b", level=40), *lines("c", level=40, at=1), *lines("d", at=1)]
    assert list(joined(mixed, most=50, longest=1000)) == mixed


def test_joined_message_is_never_longer_than_the_api_takes() -> None:
    found = list(joined(lines(*["x" * 30] * 10), most=50, longest=100))
    assert max(len(line.message) for line in found) <= 100
    assert sum(line.lines for line in found) == 10
    assert found[0].lines == 3
