"""`MissingValue`: what a completed run's state holds in place of a value that did not come back."""

from typing import Any, cast

from prefect.exceptions import MissingResult
from prefect.results import (
    ResultRecord,  # pyright: ignore[reportPrivateImportUsage]
    get_result_store,
)
from pydantic import PrivateAttr

from prefect_ray_worker.errors import AnswerMissing


class ValueMissing(AnswerMissing, MissingResult):
    """An `AnswerMissing` as a task gets it.

    Any error but its own Prefect (3.8.8) replaces by "Failed to resolve inputs".
    """


class MissingValue(ResultRecord[Any]):
    """A result record that says why there is no result, when somebody asks for it.

    Prefect (3.8.8) raises a `MissingResult` without a reason for a state that holds nothing.
    """

    _why: str = PrivateAttr(default="")

    @classmethod
    def because(cls, why: str) -> "MissingValue":
        """Make a record.

        Args:
            why: The message of the error.
        """
        metadata = get_result_store().create_result_record(None).metadata
        record = cls.model_construct(metadata=metadata)
        setattr(record, "_why", why)  # noqa: B010 (it is pydantic's way to have attributes)
        return record

    def __getattr__(self, item: str) -> Any:
        if item == "result":
            raise ValueMissing(self._why)
        return cast("Any", super()).__getattr__(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingValue.because, (self._why,)
