"""How a small value, or the user's own exception, comes back: in the inputs of the flow run.

The driver leaves an answer just before the engine proposes a final state, so a caller that reads
the state finds it. Each attempt has answers of its own: an earlier one is never taken for a
later one's. A caller unpickles what the cluster sent, as it does with Prefect's result storage.
"""

import base64
import hashlib
import json
import pickle
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.results import (
    ResultRecord,  # pyright: ignore[reportPrivateImportUsage]
    ResultRecordMetadata,  # pyright: ignore[reportPrivateImportUsage]
)

from prefect_ray_worker.bundles.carriers import (
    MOST_BYTES_IN_INPUTS,
    MOST_BYTES_IN_ONE,
    decoded,
    read_parts,
    send_parts,
    write_input,
)
from prefect_ray_worker.bundles.identity import dump_value
from prefect_ray_worker.errors import BundleUnusable

Kind = Literal["value", "exception", "none", "unreadable"]

_PREFIX = "ray-answer"
_MOST_ANSWERS = 200
_LONGEST_TEXT = 20_000


@dataclass(frozen=True)
class FlowAnswer:
    """What a flow returned or raised.

    Attributes:
        kind: What it is; `none` for a value that could not be sent, `unreadable` for one that
            cannot be unpickled in this process.
        value: The value or the exception; of an unreadable one, what unpickling it raised.
        text: The remote traceback, or why there is no value.
    """

    kind: Kind
    value: Any = None
    text: str = ""


class Answering:
    """Leaves the answers of one attempt in the inputs of its run.

    Args:
        client: An open client.
        flow_run_id: The run.
        attempt: The attempt's name.
        with_values: Whether values are sent; exceptions always are.
    """

    def __init__(
        self, client: SyncPrefectClient, flow_run_id: UUID, attempt: str, *, with_values: bool
    ) -> None:
        self._client = client
        self._run_id = flow_run_id
        self._attempt = attempt
        self._with_values = with_values
        self._count = 0
        self._last: list[str] = []

    def leave(self, state: State[Any]) -> None:
        """Leave what a state that the engine is about to propose holds."""
        if state.is_completed() and self._with_values:
            self._write("value", _data_of(state))
        elif state.is_failed():
            raised = _data_of(state)
            if isinstance(raised, BaseException):
                self._write("exception", raised)

    def _write(self, kind: Kind, value: Any) -> None:
        content, text = b"", ""
        try:
            content = dump_value(value)
            if isinstance(value, BaseException):
                text = "".join(traceback.format_exception(value))[-_LONGEST_TEXT:]
                pickle.loads(content)  # noqa: S301 (what some exceptions do not survive)
        except Exception as exc:  # noqa: BLE001 (anything may happen in a user's __reduce__)
            kind, content = "none", b""
            text = f"A {type(value).__qualname__} cannot be pickled ({type(exc).__name__}: {exc})."
        if len(content) > MOST_BYTES_IN_INPUTS:
            kind, text = "none", _too_large(len(content))
            content = b""
        key = f"{self._attempt}-{self._count:04d}"
        self._count += 1
        told: dict[str, Any] = {
            "kind": kind,
            "sha256": hashlib.sha256(content).hexdigest(),
            "text": text,
        }
        parts = 0
        if len(content) <= MOST_BYTES_IN_ONE:
            told["content"] = base64.b64encode(content).decode()
        else:
            prefix = f"{_PREFIX}-part-{key}"
            told["parts"] = parts = send_parts(self._client, self._run_id, prefix, content)
        write_input(self._client, self._run_id, f"{_PREFIX}-{key}", json.dumps(told))
        self._forget_last()
        parts_of_it = [f"{_PREFIX}-part-{key}-{number}" for number in range(parts)]
        self._last = [f"{_PREFIX}-{key}", *parts_of_it]

    def _forget_last(self) -> None:
        """Delete the answer of an earlier try: a flow can be retried very often."""
        for key in self._last:
            with suppress(Exception):  # it is ignored in any case
                self._client.delete_flow_run_input(self._run_id, key)


def read_answer(
    client: SyncPrefectClient, flow_run_id: UUID, attempt: str, state: State[Any]
) -> FlowAnswer | None:
    """Return the last answer of an attempt if it belongs to the run's final state, or None.

    Args:
        client: An open client.
        flow_run_id: The run.
        attempt: The attempt's name.
        state: The run's final state.
    """
    if not (state.is_completed() or state.is_failed()):
        return None  # an earlier try of the flow may have left its exception
    found = client.filter_flow_run_input(
        flow_run_id, f"{_PREFIX}-{attempt}-", limit=_MOST_ANSWERS, exclude_keys=set()
    )
    if not found:
        return None
    last = max(found, key=lambda entry: entry.key)
    told = json.loads(last.value)
    kinds: tuple[Kind, ...] = ("value", "none") if state.is_completed() else ("exception", "none")
    if told["kind"] not in kinds:
        return None
    if told["kind"] == "none":
        return FlowAnswer("none", text=told["text"])
    if "content" in told:
        content = decoded(told["content"], "The answer")
    else:
        key = last.key.removeprefix(f"{_PREFIX}-")
        content = read_parts(client, flow_run_id, f"{_PREFIX}-part-{key}", told["parts"])
    if hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise BundleUnusable(f"The answer of the flow run {flow_run_id} is damaged.")
    try:
        return FlowAnswer(told["kind"], pickle.loads(content), told["text"])  # noqa: S301 (see above)
    except Exception as exc:  # noqa: BLE001 (of the user's classes)
        return FlowAnswer("unreadable", exc, told["text"])


def _data_of(state: State[Any]) -> Any:
    data: Any = state.data
    if isinstance(data, ResultRecord):
        return data.result
    return None if isinstance(data, ResultRecordMetadata) else data


def _too_large(size: int) -> str:
    mib = 1024 * 1024
    return (
        f"The value has {size / mib:.1f} MiB pickled, more than the {MOST_BYTES_IN_INPUTS // mib} "
        "MiB that come back without result storage."
    )
