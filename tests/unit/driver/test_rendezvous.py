"""Where zygotes are found, and by whom."""

import os
from pathlib import Path

import pytest

from prefect_ray_worker.driver.supervise.link import GuardLink, Order, Word
from prefect_ray_worker.driver.supervise.rendezvous import Rendezvous
from tests.integration.processes import zygotes_at


def test_who_listens_is_found_until_it_leaves(tmp_path: Path) -> None:
    rendezvous = Rendezvous(7, tmp_path)
    assert rendezvous.connect("a") is None
    place = rendezvous.listen("a")
    assert place is not None
    assert rendezvous.listen("a") is None, "one at a time"
    assert rendezvous.fingerprints() == ["a"]
    assert zygotes_at(rendezvous) == {os.getpid()}
    assert not zygotes_at(Rendezvous(8, tmp_path)), "another node"
    listener, lock = place
    with listener:
        rendezvous.leave("a")
    os.close(lock)
    assert rendezvous.connect("a") is None
    assert not zygotes_at(rendezvous)


def test_the_place_of_one_that_was_killed_is_taken(tmp_path: Path) -> None:
    rendezvous = Rendezvous(7, tmp_path)
    for _ in range(2):
        place = rendezvous.listen("a")
        assert place is not None
        listener, lock = place
        listener.close()
        os.close(lock)  # as the kernel does: the socket stays, and nobody listens
        assert rendezvous.connect("a") is None


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path, mode: int) -> None:
    (tmp_path / f"prefect-ray-worker-{os.getuid()}").mkdir()
    (tmp_path / f"prefect-ray-worker-{os.getuid()}").chmod(mode)
    with pytest.raises(PermissionError, match="is not a private folder"):
        Rendezvous(7, tmp_path)


def test_an_order_arrives_with_its_files(tmp_path: Path) -> None:
    rendezvous = Rendezvous(7, tmp_path)
    place = rendezvous.listen("a")
    assert place is not None
    listener, lock = place
    connection = rendezvous.connect("a")
    assert connection is not None
    ours = GuardLink(connection)
    order = Order(["id", "attempt"], {"A": "\udcff", "B": "x" * 100_000}, "/", 0o022)
    ours.send_order(order)
    with listener:
        theirs = GuardLink(listener.accept()[0])
        received, files = theirs.receive_order()
    assert received == order
    assert [os.fstat(file).st_ino for file in files] == [os.fstat(n).st_ino for n in range(3)]
    theirs.say(Word.READY)
    assert ours.hears(Word.READY)
    theirs.say(Word.ENDED, -9)
    theirs.close()
    assert not ours.hears(Word.GO)
    ours.close()
    for file in (lock, *files):
        os.close(file)


def test_a_look_is_no_order(tmp_path: Path) -> None:
    rendezvous = Rendezvous(7, tmp_path)
    place = rendezvous.listen("a")
    assert place is not None
    listener, lock = place
    zygotes_at(rendezvous)
    looking = GuardLink(listener.accept()[0])
    with listener, pytest.raises(ValueError, match="no order"):
        looking.receive_order()
    looking.close()
    os.close(lock)
