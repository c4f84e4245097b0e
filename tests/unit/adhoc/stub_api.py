"""A Prefect client without an API, for what a caller asks while it follows a run."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Self
from uuid import UUID, uuid4

from prefect.client.schemas.objects import FlowRun, Log
from prefect.states import State


class StubApi:
    """Answers as Prefect's client would, and counts the requests.

    Attributes:
        state: The run's state.
        logs: Its lines.
        queue: The id of its work queue.
        asked: How often each question was asked.
        before: Called with a question's name before it is answered.
    """

    def __init__(self, state: State[Any]) -> None:
        self.state = state
        self.logs: list[Log] = []
        self.queue: UUID | None = uuid4()
        self.asked: Counter[str] = Counter()
        self.before: Callable[[str], None] = lambda _: None
        self.api_url = f"http://stub/{uuid4()}/api"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _ask(self, question: str) -> None:
        self.asked[question] += 1
        self.before(question)

    def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        self._ask("run")
        return FlowRun(
            id=flow_run_id,
            flow_id=uuid4(),
            name="stub",
            state=self.state,
            work_pool_name="pool",
            work_queue_id=self.queue,
        )

    def read_flow_runs(self, **_: object) -> list[FlowRun]:
        self._ask("look")
        return []

    def read_flow_run_states(self, _: UUID) -> list[State[Any]]:
        self._ask("history")
        return [self.state]

    def read_logs(self, wanted: Any, offset: int, **_: object) -> list[Log]:
        self._ask("logs")
        since = wanted.timestamp.after_ if wanted.timestamp else None
        found = [log for log in self.logs if since is None or log.timestamp >= since]
        return found[offset : offset + 200]

    def filter_flow_run_input(self, *_: object, **__: object) -> list[Any]:
        self._ask("answer")
        return []
