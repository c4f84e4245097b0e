"""Private names of Prefect's sender of events."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.events.schemas.events import Event


def tap_events(take: "Callable[[Event], None]") -> None:
    """Pass all events of this process to a function instead of Prefect's sender.

    `emit_event` (3.8.8) uses `EventsWorker.instance()` only if its client has one of a few types.
    Ours is the type for Prefect's own process pool, which also forwards events to another sender.
    """
    from prefect.events.worker import EventsWorker, ProcessPoolForwardingEventsClient

    class Tap:
        client_type = ProcessPoolForwardingEventsClient

        @staticmethod
        def send(event: "Event") -> None:
            take(event)

    global _untapped  # noqa: PLW0603 (one EventsWorker per process)
    _untapped = _untapped or EventsWorker.instance

    def instance(*_: object, **__: object) -> type[Tap]:
        return Tap

    setattr(EventsWorker, "instance", instance)  # noqa: B010 (it is of another type)


def untap_events() -> None:
    """Let Prefect's own sender have the events of this process again."""
    from prefect.events.worker import EventsWorker

    if _untapped is not None:
        setattr(EventsWorker, "instance", _untapped)  # noqa: B010 (see `tap_events`)


_untapped: "Callable[..., Any] | None" = None


def send_event_by_websocket(event: bytes) -> None:
    """Send an event through Prefect's own sender, even after `tap_events`."""
    from prefect.events.schemas.events import Event
    from prefect.events.worker import EventsWorker

    (_untapped or EventsWorker.instance)().send(Event.model_validate_json(event))


def await_events_sent(seconds: float) -> None:
    """Wait until Prefect's own event sender has sent its queue (`_QueueServiceBase`, 3.8.8).

    Waits up to `seconds` for each sender. Prefect's `wait_until_empty` has no timeout.
    """
    from prefect.events.worker import EventsWorker

    # `_instances` holds services of all kinds.
    services: list[Any] = list(EventsWorker._instances.values())  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    for worker in services:
        if isinstance(worker, EventsWorker):
            left = worker._queue  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            with left.all_tasks_done:
                left.all_tasks_done.wait_for(lambda: not left.unfinished_tasks, seconds)  # noqa: B023
