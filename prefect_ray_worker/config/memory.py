"""Amounts of memory as people write them: "2GiB", "500MB" or a number of bytes."""

from typing import Annotated

from pydantic import BeforeValidator, ByteSize, TypeAdapter, ValidationError

_BYTE_SIZE = TypeAdapter(ByteSize)


def _parse_memory(value: object) -> object:
    try:
        size = int(_BYTE_SIZE.validate_python(value)) if isinstance(value, str | int) else 0
    except ValidationError:
        size = 0
    if size <= 0:
        raise ValueError('is not an amount of memory. Write "2GiB", "500MB" or a number of bytes')
    return value


Memory = Annotated[str | int, BeforeValidator(_parse_memory)]


def memory_in_bytes(value: str | int | None) -> int | None:
    """Return a validated amount of memory in bytes, or None for None."""
    return None if value is None else int(_BYTE_SIZE.validate_python(value))
