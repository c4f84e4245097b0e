"""Large values are neither copied on their way to Ray, nor do they change on it."""

import pickle
from typing import Any

import pytest

from prefect_ray_worker.task_runner.pickling import (
    Packed,
    Packer,
    digest_of,
    pack,
    unpack,
    unpack_all,
)

LARGE = b"x" * 1_000_000
OTHER = b"y" * 500_000


def sent(packed: Packed) -> tuple[Packed, int]:
    """Return what arrives, and how many bytes Ray would copy into its message."""
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    store = [memoryview(buffer.raw().tobytes()) for buffer in buffers]
    return pickle.loads(message, buffers=store), len(message)


@pytest.mark.parametrize("value", [LARGE, {"a": [LARGE, "b", OTHER], "c": 1}, "z" * 1_000_000])
def test_large_values_go_beside_the_message(value: Any) -> None:
    arrived, copied = sent(pack(value))
    assert copied < 1_000
    assert unpack(arrived) == value


def test_large_bytes_are_not_copied() -> None:
    assert any(piece is LARGE for piece in pack({"a": LARGE}).more)


def test_what_may_change_is_copied() -> None:
    value = bytearray(LARGE)
    packed = pack([value])
    value[:] = bytes(len(LARGE))
    assert unpack(packed) == [LARGE]


def test_parts_refer_to_each_other_across_pieces() -> None:
    packer, node = Packer(), [1]
    values = [{"node": node, "large": LARGE}, [node, OTHER], node]
    parts = [sent(packer.pack(value))[0] for value in values]
    first, second = unpack_all(parts[:1]), unpack_all(parts[:2])
    assert first == values[0]
    assert second == values[1]
    assert unpack_all(parts) == node


def test_a_digest_covers_all_pieces() -> None:
    ends = [pack([LARGE, end]) for end in ("one", "other")]
    assert digest_of(ends[0]) != digest_of(ends[1])
    assert digest_of(ends[0]) == digest_of(sent(ends[0])[0])
