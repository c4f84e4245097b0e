"""Every message that the package has says what to do, or the page of messages does."""

import ast
import sys
from pathlib import Path

import pytest

from prefect_ray_worker import errors

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "reference"))
import messages  # noqa: E402
import ways_out  # noqa: E402


@pytest.fixture(scope="module")
def found() -> list[messages.Message]:
    return messages.collect()


def test_every_message_has_a_way_out(found: list[messages.Message]) -> None:
    without = [f"{m.place}: {m.text}" for m in found if messages.way_out(m) is None]
    assert len(found) > 100
    assert not without, (
        "These do not say what to do. Let them say so, or add them to docs/reference/ways_out.py."
    )


def test_no_way_out_is_of_a_message_that_is_gone(found: list[messages.Message]) -> None:
    assert set(ways_out.OF_MESSAGES) <= {message.text for message in found}
    assert set(ways_out.OF_KINDS) <= {message.kind for message in found}


def test_every_folder_that_says_something_has_its_topic(found: list[messages.Message]) -> None:
    assert {message.folder for message in found} <= set(messages._FOLDERS)


def test_every_class_of_errors_is_on_one_of_the_two_pages(found: list[messages.Message]) -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    unknown = {m.kind for m in found if hasattr(errors, m.kind) and f"`{m.kind}`" not in page}
    assert unknown == set()


@pytest.mark.parametrize(
    ("source", "kind", "text", "ends"),
    [
        ('log.warning("%s away for %.1f s", a, b)', "warning", "… away for … s", False),
        ('_log.error("It broke. It is broken.")', "error", "It broke. It is broken.", False),
        ('log.warning("It broke. Run it again.")', "warning", "It broke. Run it again.", True),
        ('raise InvalidConfiguration(f"{a} is bad")', "InvalidConfiguration", "… is bad", False),
        ('X = "bad"\nNotAuthorized(X + ". Set a")', "NotAuthorized", "bad. Set a", True),
        ('start_failed(Category.X, f"{a} is gone")', "ClusterFailed", "… is gone", False),
    ],
)  # fmt: skip
def test_new_message_is_found_and_needs_a_way_out(
    source: str, kind: str, text: str, ends: bool, tmp_path: Path
) -> None:
    (tmp_path / "new.py").write_text(source)
    (message,) = messages.collect(tmp_path)
    assert (message.kind, message.text) == (kind, text)
    assert (messages.way_out(message) is not None) == ends


def test_names_of_states_that_the_code_gives_are_explained() -> None:
    named: set[str] = set()
    for path in messages.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "Pending", "Scheduled", "Running", "Crashed", "Cancelled", "Failed",
            }:  # fmt: skip
                named |= {ast.unparse(k.value) for k in node.keywords if k.arg == "name"}
    assert named == {"INFRASTRUCTURE_RETRY", "NOT_LOADED", "UNSENDABLE"}, (
        "explain it in messages.STATES"
    )
    from prefect_ray_worker.shared.ids import INFRASTRUCTURE_RETRY
    from prefect_ray_worker.task_runner.task_end import NOT_LOADED, UNSENDABLE

    assert {INFRASTRUCTURE_RETRY, NOT_LOADED, UNSENDABLE} <= set(messages.STATES)
