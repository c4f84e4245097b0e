"""Which Ray of this machine is taken for gone, and which may be there."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_ray_worker.task_runner import session


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("noted", "is_left_over"),
    [
        (nobody, True),
        (lambda: "192.0.2.1:6379", False),  # of another machine, which may be restarting
        (lambda: "no address", False),
        (lambda: "", False),
    ],
    ids=["nobody listens", "another machine", "no address", "empty"],
)
def test_a_noted_ray_is_gone_only_if_this_machine_refuses(
    noted: Callable[[], str], is_left_over: bool, tmp_path: Path
) -> None:
    (tmp_path / "ray_current_cluster").write_text(noted())
    assert session._leftover(str(tmp_path)) is is_left_over


def test_a_noted_ray_that_listens_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        note = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray_current_cluster").write_text(note)
        assert not session._leftover(str(tmp_path))


def test_without_a_note_nothing_is_gone(tmp_path: Path) -> None:
    assert not session._leftover(str(tmp_path))
