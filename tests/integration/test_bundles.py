"""How bundles travel over a real Prefect API, and what a driver does with one that is not right."""

import base64
import hashlib
import importlib
import json
import os
import pickle
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio.to_thread
import httpx
import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import FailedRun
from prefect.filesystems import LocalFileSystem
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Scheduled

from prefect_ray_worker.adhoc.following import RayFlowRunFuture
from prefect_ray_worker.bundles import carriers
from prefect_ray_worker.bundles.answers import Answering, read_answer
from prefect_ray_worker.bundles.carriers import (
    HEADER_KEY,
    header_of_stored,
    read_content,
    read_header,
    send_bundle,
    write_input,
)
from prefect_ray_worker.bundles.content import load_block
from prefect_ray_worker.bundles.header import BundleHeader
from prefect_ray_worker.bundles.packing import pack
from prefect_ray_worker.errors import AnswerMissing, BundleDamaged, BundleMissing, BundleRefused
from prefect_ray_worker.shared.category import Category
from tests.integration.driver_kit import driver, ends, output, present_attempt
from tests.integration.harness import Pool
from tests.ports import free_port

T = TypeVar("T")
MIB = 1024 * 1024


@flow
def adds(a: int, b: int) -> int:
    return a + b


async def new_run(pool: Pool) -> UUID:
    run = await pool.client.create_flow_run(
        adds, parameters={"a": 1, "b": 2}, state=Scheduled(), work_pool_name=pool.name
    )
    return run.id


async def ask(act: Callable[[SyncPrefectClient], T]) -> T:
    """Act with a client in a thread, as a caller does."""

    def acted() -> T:
        with get_client(sync_client=True) as client:
            return act(client)

    return await anyio.to_thread.run_sync(acted)


async def content_of(run_id: UUID) -> bytes:
    return await ask(lambda c: read_content(c, run_id, read_header(c, run_id), load_block))


@pytest.mark.parametrize(("size", "parts"), [(384 * 1024, 0), (384 * 1024 + 1, 2), (4 * MIB, 11)])
async def test_content_is_in_the_header_or_in_parts(here: Pool, size: int, parts: int) -> None:
    """Most bundles are small: one request to send them, and one to read them."""
    run_id, content = await new_run(here), secrets.token_bytes(size)
    header = await ask(lambda c: send_bundle(c, run_id, content))
    assert header.parts == parts
    assert await content_of(run_id) == content
    run = await here.read(run_id)
    assert run.parameters == {"a": 1, "b": 2}, "reading a run does not read its bundle"


async def test_writing_again_does_no_harm_and_replaces_nothing(here: Pool) -> None:
    """An answer can get lost, and the API never replaces an input."""
    run_id = await new_run(here)
    await ask(lambda c: send_bundle(c, run_id, b"content"))
    await ask(lambda c: send_bundle(c, run_id, b"content"))
    with pytest.raises(BundleRefused, match="has another bundle already"):
        await ask(lambda c: write_input(c, run_id, HEADER_KEY, "other"))
    assert await content_of(run_id) == b"content"


async def _write_later(file: Path, content: bytes) -> None:
    await anyio.sleep(1)
    file.write_bytes(content)


async def test_more_than_four_mib_go_to_a_storage_block(
    here: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, content = await new_run(here), secrets.token_bytes(4 * MIB + 1)
    with pytest.raises(BundleRefused, match="too large"):
        await ask(lambda c: send_bundle(c, run_id, content))
    block = LocalFileSystem(basepath=str(tmp_path))
    await block.save(f"bundles-{here.name}")
    stored = await anyio.to_thread.run_sync(header_of_stored, content, block)
    header = await ask(lambda c: send_bundle(c, run_id, content, stored))
    assert (header.carrier, header.parts) == ("storage", 0)
    assert await content_of(run_id) == content
    (file,) = (tmp_path / "ray-bundles").iterdir()
    file.write_bytes(content[:1000])  # while another call writes the same
    async with anyio.create_task_group() as others:
        others.start_soon(_write_later, file, content)
        assert await content_of(run_id) == content
    monkeypatch.setattr(carriers, "_WRITING_SECONDS", (0.1,))
    file.write_bytes(b"something else")
    with pytest.raises(BundleDamaged):
        await content_of(run_id)
    file.unlink()
    with pytest.raises(BundleMissing):
        await content_of(run_id)


_LOADS = """
import sys
from pathlib import Path
from prefect_ray_worker.bundles.content import unpack, unpickle
print(unpickle(unpack(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]))).fn())
"""


async def test_saved_block_of_a_class_that_prefect_does_not_have_arrives(
    here: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow names only the block: nothing else imports the module of its class."""
    (tmp_path / "company_blocks.py").write_text(
        "from prefect.blocks.core import Block\n"
        "class Warehouse(Block):\n"
        "    rows: int\n"
        "    def count(self): return self.rows * 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    warehouse = importlib.import_module("company_blocks").Warehouse(rows=21)
    await warehouse.save(f"warehouse-{here.name}")
    namespace: dict[str, Any] = {"__name__": "__main__", "flow": flow, "warehouse": warehouse}
    exec("@flow\ndef counts(): return warehouse.count()", namespace)
    monkeypatch.chdir(tmp_path)
    packed = await anyio.to_thread.run_sync(pack, namespace["counts"], {})
    (tmp_path / "bundle").write_bytes(packed.content)
    (tmp_path / "there").mkdir()
    arguments = [sys.executable, "-c", _LOADS, str(tmp_path / "bundle"), str(tmp_path / "there")]
    env = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PYTHONPATH": str(tmp_path),  # the nodes have the package
    }
    done = await anyio.run_process(arguments, env=env, cwd="/", check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip() == "42"


async def bundle_with(
    here: Pool, *, part: bytes | None = None, lacks_part: bool = False, **header: Any
) -> UUID:
    """Return a run whose bundle is not as its caller packed it."""
    run_id = await new_run(here)
    content = pack(adds, {"a": 1, "b": 2}).content
    text = json.loads(BundleHeader.of(content, carrier="inputs", parts=1).to_json())
    if not lacks_part:
        sent = base64.b64encode(part or content).decode()
        await here.client.create_flow_run_input(run_id, f"{HEADER_KEY}-part-0", sent)
    await here.client.create_flow_run_input(run_id, HEADER_KEY, json.dumps({**text, **header}))
    return run_id


@pytest.mark.parametrize(
    ("wrong", "category", "says"),
    [
        ({"python": "3.9"}, Category.PYTHON_VERSION_MISMATCH, "called from Python 3.9, and the"),
        ({"part": b"else"}, Category.BUNDLE_DAMAGED, "another SHA-256"),
        pytest.param(
            {"lacks_part": True},
            Category.BUNDLE_MISSING,
            "Part 1 of 1",
            marks=pytest.mark.extra,
        ),
        pytest.param(
            {"format": 9},
            Category.BUNDLE_DAMAGED,
            "different releases",
            marks=pytest.mark.extra,
        ),
    ],
)
async def test_driver_crashes_a_run_whose_bundle_is_not_right(
    here: Pool, wrong: dict[str, Any], category: Category, says: str
) -> None:
    """Another Python was a segmentation fault: exit code 139 and no reason."""
    run_id = await bundle_with(here, **wrong)
    await here.client.set_flow_run_state(run_id, Pending())
    process = driver(run_id, await present_attempt(here, run_id))
    await anyio.to_thread.run_sync(process.communicate)
    run = await ends(here, run_id, StateType.CRASHED, category.label)
    assert says in (run.state.message or "")


async def test_driver_runs_a_bundle(here: Pool) -> None:
    run_id = await bundle_with(here)
    await here.client.set_flow_run_state(run_id, Pending())
    process = driver(run_id, await present_attempt(here, run_id))
    await anyio.to_thread.run_sync(output, process)
    await ends(here, run_id, StateType.COMPLETED)


ATTEMPT = "0123456789ab"


class Unreadable:
    """Like an object of another version of its package."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


async def test_exception_of_an_earlier_try_is_not_the_reason_of_a_crash(here: Pool) -> None:
    """The flow failed, was to be tried again, and was cancelled or killed before its end."""
    run_id = await new_run(here)

    def leave(client: SyncPrefectClient) -> None:
        with_values = Answering(client, run_id, ATTEMPT, with_values=True)
        with_values.leave(Failed(data=ValueError("of the first try")))

    await ask(leave)
    failed = await ask(lambda c: read_answer(c, run_id, ATTEMPT, Failed()))
    assert failed is not None
    assert failed.kind == "exception"
    for state in (Crashed(), Cancelled()):
        assert await ask(lambda c, s=state: read_answer(c, run_id, ATTEMPT, s)) is None


async def test_value_that_cannot_be_read_here_says_what_to_install(here: Pool) -> None:
    """It was a bare `ValueError` of the pickled class, as if the flow had raised it."""
    run_id = await new_run(here)
    future = RayFlowRunFuture[Any](run_id)
    future.ended(Completed(), None)
    future.attempt = ATTEMPT
    await ask(
        lambda c: Answering(c, run_id, ATTEMPT, with_values=True).leave(
            Completed(data=Unreadable())
        )
    )
    with pytest.raises(AnswerMissing, match=r"ValueError: .*no number.*versions that the cluster"):
        await future.aresult()


async def test_task_gets_the_value_of_a_called_flow(here: Pool) -> None:
    """Without result storage it got a MissingResult, or the AttributeError of Prefect's future."""
    run_id = await new_run(here)
    await here.client.set_flow_run_state(run_id, Pending())
    attempt = await present_attempt(here, run_id)
    done = Completed(data=42)
    await ask(lambda c: Answering(c, run_id, attempt, with_values=True).leave(done))
    await here.client.set_flow_run_state(run_id, Completed(), force=True)

    @task
    def plus_one(value: int) -> int:
        return value + 1

    @flow
    def caller() -> tuple[int, int]:
        future: Any = RayFlowRunFuture[int](run_id)
        return plus_one(future), plus_one.submit(future).result()

    assert await anyio.to_thread.run_sync(caller) == (43, 43)


async def test_task_that_gets_no_value_of_a_called_flow_says_why(here: Pool) -> None:
    """It raised Prefect's MissingResult, without the reason and the way out."""
    run_id = await new_run(here)
    await here.client.set_flow_run_state(run_id, Pending())
    attempt = await present_attempt(here, run_id)
    unsendable = Completed(data=threading.Lock())
    await ask(lambda c: Answering(c, run_id, attempt, with_values=True).leave(unsendable))
    await here.client.set_flow_run_state(run_id, Completed(), force=True)
    future: Any = RayFlowRunFuture[Any](run_id)

    @flow
    def caller() -> Any:
        task(lambda value: value)(future)

    with pytest.raises(AnswerMissing, match=r"A lock cannot be pickled .* give the work pool"):
        await anyio.to_thread.run_sync(caller)
    state = pickle.loads(pickle.dumps(future.state))  # as it goes to a task on Ray
    with pytest.raises(AnswerMissing, match="A lock cannot be pickled"):
        await state.aresult()
    assert future.state_with_data().data is None  # as `return_state=True` has it


async def test_caller_of_a_run_that_was_deleted_is_told(here: Pool) -> None:
    """It was an `ObjectNotFound` without a message."""
    run_id = await new_run(here)
    await here.client.delete_flow_run(run_id)
    with pytest.raises(AnswerMissing, match=f"{run_id} any more: it was deleted"):
        await RayFlowRunFuture[Any](run_id).aresult()


async def test_limit_of_a_wait_holds_while_the_api_is_away(here: Pool) -> None:
    """It was ten minutes."""
    began = time.monotonic()
    away = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}
    with temporary_settings(away), pytest.raises(httpx.ConnectError):
        await RayFlowRunFuture[Any](UUID(int=1)).wait_async(1)
    assert time.monotonic() - began < 20


async def test_exception_that_cannot_be_read_here_comes_as_its_traceback(here: Pool) -> None:
    run_id = await new_run(here)
    text = {"kind": "exception", "sha256": hashlib.sha256(b"").hexdigest(), "content": "",
            "text": "Traceback of the cluster"}  # fmt: skip
    await ask(lambda c: write_input(c, run_id, f"ray-answer-{ATTEMPT}-0000", json.dumps(text)))
    future = RayFlowRunFuture[Any](run_id)
    future.ended(Failed(message="no data"), None)
    future.attempt = ATTEMPT
    with pytest.raises(FailedRun, match="no data") as raised:
        await future.aresult()
    assert "Traceback of the cluster" in "".join(raised.value.__notes__)
