"""Long lists are read record by record, and only what is wanted becomes a model."""

import json
from typing import Any

import pytest

from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.ray_api.records import RecordReader, Wanted

RECORDS = [
    {"submission_id": "a", "status": "RUNNING"},
    {"submission_id": "b", "status": "FAILED", "message": 'odd " ] , [ text'},
    {"submission_id": "c"},
]


class _CountingDecoder(json.JSONDecoder):
    """Counts the characters that it is given to look at."""

    scanned = 0

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        self.scanned += len(s) - idx
        return super().raw_decode(s, idx)


def read_records(body: bytes, wanted: Wanted | None) -> list[JobDetails]:
    reader = RecordReader(wanted)
    reader.feed(body)
    return reader.close()


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("around", ["", " \n"])
def test_all_that_can_be_read(indent: int | None, around: str) -> None:
    body = around + json.dumps(RECORDS, indent=indent) + around
    assert [job.submission_id for job in read_records(body.encode(), None)] == ["a", "b"]
    wanted = read_records(body.encode(), lambda record: record["submission_id"] == "b")
    assert [job.submission_id for job in wanted] == ["b"]


@pytest.mark.parametrize("body", ["[]", " [ ] "])
def test_empty_list(body: str) -> None:
    assert read_records(body.encode(), None) == []


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        read_records(b'[{"submission_id": "\xff"}]', None)


@pytest.mark.parametrize(
    "body", ["", "<html>", "{}", "null", "[", '[{"a": 1}', '[{"a": 1} {"b": 2}]', '[{"a": 1},]']
)
def test_anything_else_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_records(body.encode(), None)


def test_what_is_no_object_is_left_out() -> None:
    body = json.dumps([1, *RECORDS]).encode()
    assert [j.submission_id for j in read_records(body, None)] == ["a", "b"]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_list_that_arrives_in_pieces(size: int) -> None:
    records = [12345, *RECORDS, {"submission_id": "ü€𝄞", "status": "RUNNING"}]
    body = json.dumps(records, indent=2, ensure_ascii=False).encode() + b" \n"
    reader = RecordReader()
    for begin in range(0, len(body), size):
        reader.feed(body[begin : begin + size])
    assert [job.submission_id for job in reader.close()] == ["a", "b", "ü€𝄞"]


def test_what_has_been_read_is_not_kept() -> None:
    """A list of tens of thousands of records is never held as a whole."""
    record = json.dumps({"submission_id": "a", "status": "FAILED", "message": "x" * 10_000})
    pieces = [b"[", *[f"{record},".encode()] * 1000, record.encode(), b"]"]
    reader = RecordReader(lambda record: False)
    kept: list[int] = []
    for piece in pieces:
        reader.feed(piece)
        # Counted, because the memory of this process is also that of other tests' threads.
        kept.append(len(reader._text) + sum(map(len, reader._pieces)))
    assert max(kept) < 3 * len(record)
    assert reader.close() == []
    assert reader._found == []


def test_a_record_that_does_not_end_is_not_scanned_again_with_each_piece() -> None:
    """It took quadratic time: half a minute of a core for 8 MB."""
    reader, decoder = RecordReader(), _CountingDecoder()
    reader._decoder = decoder
    reader.feed(b'[{"submission_id": "a", "message": "')

    def feed_without_end() -> None:
        for _ in range(10_000):
            reader.feed(b"x" * 1_000)

    with pytest.raises(ValueError, match="more than"):
        feed_without_end()
    assert 8_000_000 < decoder.scanned < 40_000_000


def test_records_that_are_nested_too_deeply_are_refused() -> None:
    """A RecursionError went past all handlers."""
    with pytest.raises(ValueError, match="nested"):
        read_records(b"[" + b'{"a":' * 100_000, None)


def test_a_large_record_in_many_pieces_is_read() -> None:
    record = {"submission_id": "a", "status": "FAILED", "message": "x" * 3_000_000}
    body = json.dumps([record, *RECORDS]).encode()
    reader = RecordReader()
    for begin in range(0, len(body), 65_536):
        reader.feed(body[begin : begin + 65_536])
    assert [job.submission_id for job in reader.close()] == ["a", "a", "b"]
