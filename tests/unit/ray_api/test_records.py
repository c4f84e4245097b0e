"""Long lists are read record by record, and only what is wanted becomes a model."""

import json
import tracemalloc

import pytest

from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.ray_api.records import RecordReader, Wanted

RECORDS = [
    {"submission_id": "a", "status": "RUNNING"},
    {"submission_id": "b", "status": "FAILED", "message": 'odd " ] , [ text'},
    {"submission_id": "c"},
]


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
    tracemalloc.start()
    try:
        for piece in pieces:
            reader.feed(piece)
        assert reader.close() == []
        assert tracemalloc.get_traced_memory()[1] < 10 * len(record)
    finally:
        tracemalloc.stop()
