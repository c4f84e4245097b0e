"""What a job prints is in the logs of its flow run: on a real server and a real Ray."""

import logging
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Log, StateType

from prefect_ray_worker.prefect_api.logs import LOGGER_NAME
from prefect_ray_worker.shared.ids import InfrastructurePid
from tests.bridged import bridged
from tests.integration.harness import Pool
from tests.real_ray import RealRay
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


def is_forwarded(log: Log) -> bool:
    return log.name.startswith(f"{LOGGER_NAME}:")


async def all_logs(pool: Pool, run_id: UUID) -> list[Log]:
    found: list[Log] = []
    while True:
        page = await pool.client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200, offset=len(found)
        )
        found += page
        if len(page) < 200:
            return found


async def logs_with(pool: Pool, run_id: UUID, text: str, seconds: float = 20) -> list[Log]:
    """Wait until a forwarded line has a text, and return all logs of the run."""

    async def there() -> list[Log]:
        logs = await all_logs(pool, run_id)
        return logs if any(text in log.message for log in logs if is_forwarded(log)) else []

    return await wait_until(there, timeout=seconds, description=f"forwarded {text!r}")


def only_once_by_its_logger(logs: list[Log], *texts: str) -> None:
    """Check that what Prefect's handlers have sent is not there a second time."""
    for text in texts:
        names = [log.name for log in logs if text in log.message]
        assert names
        assert not [name for name in names if name.startswith(LOGGER_NAME)], text


async def start(
    pool: Pool, flow: str, parameters: dict[str, Any] | None = None, **deploy: Any
) -> UUID:
    return await pool.start(flow, parameters, entrypoint=f"log_flows.py:{flow}", **deploy)


def messages_of(logs: list[Log]) -> list[str]:
    return [log.message for log in logs if is_forwarded(log)]


async def test_everything_is_there_once_and_in_order(pool: Pool) -> None:
    async with pool.working():
        run_id = await start(pool, "prints_in_every_way")
        await pool.wait_for(run_id, StateType.COMPLETED)
        logs = await logs_with(pool, run_id, "printed last, without an end")
    messages = [log.message for log in logs]
    forwarded = {log.message: log for log in logs if is_forwarded(log)}
    for text, level in {
        "printed first": logging.INFO,
        "printed between": logging.INFO,
        "to stderr": logging.INFO,
        "task printed": logging.INFO,
        "mylib - library careful": logging.WARNING,
        "subprocess out": logging.INFO,
        "subprocess err": logging.INFO,
        "bar 100%": logging.INFO,
        "bad \ufffd\ufffd bytes": logging.INFO,
        "red": logging.INFO,
        "printed last, without an end": logging.INFO,
    }.items():
        assert messages.count(text) == 1, text
        assert forwarded[text].level == level, text
    assert [m for m in forwarded if "UserWarning: python careful" in m]
    assert [len(m) for m in forwarded if m.startswith("long ")] == [300_005]
    (cut,) = [m for m in forwarded if m.startswith("longer ")]
    assert len(cut) > 999_000
    assert re.search(r"\[\d+ more (bytes|characters)\]$", cut)
    order = ["printed first", "flow logger says one", "printed between", "to stderr", "bar 100%"]
    assert [m for m in messages if m in order] == order
    assert not [m for m in forwarded if "Running entrypoint" in m]
    only_once_by_its_logger(logs, "flow logger says one", "caught on purpose", "two lines")
    only_once_by_its_logger(logs, "task logger says hello", "Finished in state Completed()")


async def test_traceback_of_a_failing_flow_is_not_repeated(pool: Pool) -> None:
    async with pool.working():
        run_id = await start(pool, "fails_loudly")
        await pool.wait_for(run_id, StateType.FAILED)
        logs = await logs_with(pool, run_id, "before the end")
    only_once_by_its_logger(logs, "Traceback (most recent call last)")
    assert not [m for m in messages_of(logs) if "fails loudly" in m]
    # Prefect's engine logs it once more when the process ends.
    assert len([log for log in logs if "Traceback" in log.message]) == 1


async def test_logs_that_died_with_their_process_are_there_once_and_in_order(
    pool: Pool, ray_cluster: RealRay
) -> None:
    """Prefect's handler holds logs for 2 s. The lines before a SIGKILL were in no log at all."""
    env = {"PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "30"}
    async with pool.working():
        run_id = await start(pool, "dies_before_its_logs_are_sent", job_variables={"env": env})
        run = await pool.wait_for(run_id, StateType.CRASHED)
        await logs_with(pool, run_id, "the very last")
        job = InfrastructurePid.parse(run.infrastructure_pid or "").submission_id
        async with bridged(ray_cluster.address, {job: run_id}) as [again]:
            await wait_until(again.done.is_set, timeout=30, description="a second bridge")
        logs = sorted(await all_logs(pool, run_id), key=lambda log: log.timestamp)
    wanted = [
        ("sent in time", logging.INFO),
        ("said twice", logging.INFO),
        ("said twice", logging.INFO),
        ("printed between", logging.INFO),
        ("the last\ntwo lines", logging.ERROR),
        ("task logger says hello", logging.INFO),
        ("task printed", logging.INFO),
        ("subflow logger says late", logging.INFO),
        ("the very last", logging.WARNING),
    ]
    words = [text for text, _ in wanted]
    said = [
        (text, log.level) for log in logs for text in dict.fromkeys(words) if text in log.message
    ]
    assert said == wanted
    assert not [log for log in logs if "subflow logger says early" in log.message]
    # The process that runs the hooks of a crash loads the flow anew.
    for step in ("Running 1 deployment pull step", "All deployment steps completed"):
        assert len([log for log in logs if step in log.message]) == 1, step
    assert not [
        log for log in logs if "marks its lines" in log.message or "Driver of" in log.message
    ]


async def test_output_of_ray_workers_is_there(pool: Pool) -> None:
    async with pool.working():
        run_id = await start(pool, "prints_in_ray_tasks")
        await pool.wait_for(run_id, StateType.COMPLETED)
        logs = await logs_with(pool, run_id, "ray worker printed")
    (line,) = [message for message in messages_of(logs) if "ray worker printed" in message]
    assert re.fullmatch(r"\(remote pid=\d+\) ray worker printed", line)
    chatter = [log for log in logs if "Connected to Ray cluster" in log.message]
    assert [log.level for log in chatter] == [logging.DEBUG]


@pytest.mark.extra
async def test_prints_that_look_like_prefects_are_there_and_its_own_are_not(pool: Pool) -> None:
    """A print in Prefect's format, and the traceback after it, were taken for Prefect's own."""
    async with pool.working():
        run_id = await start(pool, "logs_in_a_process_pool")
        await pool.wait_for(run_id, StateType.COMPLETED)
        logs = await logs_with(pool, run_id, "ValueError: printed by hand as well")
    messages = messages_of(logs)
    assert "12:00:00.123 | INFO    | Flow run 'a-b' - printed by hand" in messages
    assert "Traceback (most recent call last):" in messages
    assert messages.count("task printed") == 1
    only_once_by_its_logger(logs, "task logger says hello", "Finished in state Completed()")


@pytest.mark.extra
async def test_prints_of_tasks_that_look_like_prefects_are_there(pool: Pool) -> None:
    """A task's print in Prefect's format hid itself, and the traceback after it."""
    async with pool.working():
        run_id = await start(pool, "prints_like_prefect_in_ray")
        await pool.wait_for(run_id, StateType.COMPLETED)
        logs = await logs_with(pool, run_id, "ValueError: printed d")
    messages = [re.sub(r"^\(.*?\) ", "", message) for message in messages_of(logs)]
    for word in "abcd":
        for text in (
            f"12:00:00.123 | INFO    | Task run 'a-b' - printed by {word}",
            f"12:00:00.123 | INFO    | Task run 'a-b' - to stderr by {word}",
            f"ValueError: printed {word}",
        ):
            assert messages.count(text) == 1, text
        only_once_by_its_logger(logs, f"task logger says hello to {word}")
    assert not [m for m in messages if "Finished in state" in m or "marks its lines" in m]


@pytest.mark.extra
async def test_prefects_own_executor_says_nothing_twice(pool: Pool) -> None:
    command = "echo from the shell; exec python -m prefect flow-run execute"
    async with pool.working():
        run_id = await start(pool, "fails_loudly", job_variables={"command": command})
        await pool.wait_for(run_id, StateType.FAILED)
        logs = await logs_with(pool, run_id, "before the end")
    messages = messages_of(logs)
    assert "from the shell" in messages
    assert not [m for m in messages if "Traceback" in m or "Beginning flow run" in m], messages


@pytest.mark.extra
async def test_forwarding_can_be_turned_off(pool: Pool) -> None:
    async with pool.working():
        without = {"forward_logs": False, "command": "echo before the end"}
        run_id = await start(pool, "fails_loudly", job_variables=without)
        await pool.wait_for(run_id, StateType.CRASHED)
        await pool.wait_for_log(run_id, "is SUCCEEDED")
        logs = await all_logs(pool, run_id)
    assert messages_of(logs) == []


async def test_restart_of_the_bridge_loses_and_doubles_nothing(
    pool: Pool, ray_cluster: RealRay, tmp_path: Path
) -> None:
    """The second bridge knows the job's id and nothing of the first."""
    marker = tmp_path / "go-on"
    async with pool.working():
        run_id = await start(
            pool,
            "chats",
            {"lines": 2000, "marker": str(marker)},
            job_variables={"forward_logs": False},
        )
        run = await pool.wait_for(run_id, StateType.RUNNING)
        job = InfrastructurePid.parse(run.infrastructure_pid or "").submission_id
        async with bridged(ray_cluster.address, {job: run_id}):
            await logs_with(pool, run_id, "chat 0000500")
        marker.touch()
        await pool.wait_for(run_id, StateType.COMPLETED)
        async with bridged(ray_cluster.address, {job: run_id}):
            await logs_with(pool, run_id, "chat 0001999")
    chats = [m[:12] for m in messages_of(await all_logs(pool, run_id)) if m.startswith("chat")]
    assert chats == [f"chat {number:07}" for number in range(2000)]
