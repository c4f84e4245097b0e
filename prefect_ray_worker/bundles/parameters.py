"""`split_parameters`: which parameters of a call its flow run shows, and which travel by pickle."""

import json
import logging
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from datetime import datetime, time, timezone, tzinfo
from typing import Any

from prefect.flows import Flow
from pydantic import BaseModel

# Of all parameters together as JSON. A server takes 512 KiB by default (3.8.8).
_MOST_SHOWN = 256 * 1024


def split_parameters(
    flow: Flow[..., Any], parameters: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the flow run shows, and what has to travel by pickle.

    A parameter travels as JSON if validating what JSON makes of it gives the same value, as long as
    all of them are not too long for a flow run.

    Args:
        flow: The flow, whose annotations say what values become.
        parameters: All of the run's parameters.
    """
    shown: dict[str, Any] = {}
    by_pickle: dict[str, Any] = {}
    left = _MOST_SHOWN
    for name, value in parameters.items():
        text, returned = _through_json(flow, name, value, parameters)
        if text is None or len(text) > left or not _is_same(value, returned):
            by_pickle[name] = value
            shown[name] = f"<{type(value).__name__}>"
        else:
            left -= len(text)
            shown[name] = json.loads(text)
    return shown, by_pickle


def _through_json(
    flow: Flow[..., Any], name: str, value: Any, parameters: Mapping[str, Any]
) -> tuple[str | None, Any]:
    """Return a parameter as JSON and what a run would get of that; (None, None) if it cannot."""
    try:
        serialized = flow.serialize_parameters({name: value})
        text = json.dumps(serialized.get(name), allow_nan=False)
        loaded = json.loads(text)
        # A file's name with bytes that are no UTF-8 has lone surrogates: no request can send them.
        json.dumps(loaded, ensure_ascii=False).encode()
        if flow.should_validate_parameters:
            with _silently():
                loaded = flow.validate_parameters({**parameters, name: loaded})[name]
    except Exception:  # noqa: BLE001 (of the value's own methods, or of its validation)
        return None, None
    return text, loaded


@contextmanager
def _silently() -> Generator[None]:
    """Keep Prefect's error for parameters that are not valid from the log of this thread.

    That JSON does not give a value back is no mistake of the user's (`validate_parameters`, 3.8.8).
    """
    thread = threading.get_ident()

    def is_of_another(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger("prefect.flows")
    logger.addFilter(is_of_another)
    try:
        yield
    finally:
        logger.removeFilter(is_of_another)


def _is_same(value: Any, other: Any) -> bool:
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        return list(value) == list(other) and all(
            _is_same(a, b) and _is_same(value[a], other[b])
            for a, b in zip(value, other, strict=True)
        )
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(_is_same, value, other))
    if isinstance(value, datetime | time):
        return value == other and _is_same_zone(value.tzinfo, other.tzinfo)
    try:
        if isinstance(value, BaseModel) or is_dataclass(value):
            return value == other and _is_same(vars(value), vars(other))
        return bool(value == other)
    except Exception:  # noqa: BLE001 (an array has no single truth)
        return False


def _is_same_zone(zone: tzinfo | None, other: tzinfo | None) -> bool:
    """Return whether a zone is still there: JSON has the offset of that moment only."""
    return isinstance(zone, timezone) or type(zone) is type(other)
