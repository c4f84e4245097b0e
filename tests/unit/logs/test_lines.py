"""Bytes to lines, whatever they are, and lines joined where a log is too fast."""

import pytest

from prefect_ray_worker.logs import lines
from prefect_ray_worker.logs.lines import Line, LineSplitter, joined


def split(*pieces: bytes) -> list[str]:
    splitter = LineSplitter(25_000)
    return [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.finish())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\n\ntwo", ["one", "", "two"]),
        (b"windows\r\nline ends\r\n", ["windows", "line ends"]),
        (b" 0%|  |\r 50%|# |\r100%|##|\nnext\n", ["100%|##|", "next"]),
        (b"bar 100%\r\n", ["bar 100%"]),
        (b"bar\r      \rtext\n", ["text"]),
        (b"\r\r\r\n", [""]),
        (b"no end", ["no end"]),
        (b"bar that is there\r", ["bar that is there"]),
        (b"\xff\xfe bad \xe2\x82\n", ["\ufffd\ufffd bad \ufffd"]),
        ("Größe 😀\n".encode(), ["Größe 😀"]),
        (b"", []),
    ],
)
def test_lines_are_the_same_however_the_stream_is_cut(data: bytes, expected: list[str]) -> None:
    assert split(data) == expected
    assert split(*(bytes([byte]) for byte in data)) == expected
    for cut in range(len(data)):
        assert split(data[:cut], data[cut:]) == expected


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_long_line_is_cut_with_a_mark(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(lines, "_MARK_ROOM", 25_000 - 10)
    data = b"0123456789abcde\n" + "aaaaaaaaa😀b\n".encode() + b"short\n"
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert split(*pieces) == [
        "0123456789… [5 more bytes]",
        # The cut goes through a character, which is left out.
        "aaaaaaaaa… [4 more bytes]",
        "short",
    ]


def test_memory_stays_bounded_without_any_line_end() -> None:
    splitter = LineSplitter(10**9)
    most = lines._LONGEST_LINE_BYTES - lines._MARK_ROOM
    for _ in range(100):
        assert list(splitter.feed(b"x" * 100_000)) == []
        assert len(splitter._line) <= most
    (line,) = splitter.finish()
    assert line.endswith(f"[{100 * 100_000 - most} more bytes]")


def of_level(*messages: str, level: int = 20, at: int = 0) -> list[Line]:
    return [Line(level, message, at, number) for number, message in enumerate(messages, 1)]


def test_lines_stay_single_where_there_is_time() -> None:
    single = of_level("a", "b", "c")
    assert list(joined(single, most=1, longest=1000)) == single


def test_neighbours_are_joined_up_to_a_number() -> None:
    found = list(joined(of_level("a", "b", "c", "d", "e"), most=2, longest=1000))
    assert [(line.message, line.number, line.count) for line in found] == [
        ("a\nb", 2, 2),
        ("c\nd", 4, 2),
        ("e", 5, 1),
    ]


def test_another_level_or_time_begins_anew() -> None:
    mixed = [
        *of_level("a"),
        *of_level("b", level=40),
        *of_level("c", level=40, at=1),
        *of_level("d", at=1),
    ]
    assert list(joined(mixed, most=50, longest=1000)) == mixed


def test_joined_message_is_never_longer_than_the_api_takes() -> None:
    found = list(joined(of_level(*["x" * 30] * 10), most=50, longest=100))
    assert max(len(line.message) for line in found) <= 100
    assert sum(line.count for line in found) == 10
    assert found[0].count == 3
