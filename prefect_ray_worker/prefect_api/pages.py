"""`pages`: all that a `/filter` endpoint of the Prefect API finds, a page at a time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Record = dict[str, Any]


async def pages(
    ask: Callable[[Record], Awaitable[list[Record]]], body: Record
) -> AsyncIterator[list[Record]]:
    """Yield the records that a filter finds, each once, until nothing more comes.

    How long a page is, the server decides (`PREFECT_SERVER_API_DEFAULT_LIMIT`, 200 by default). It
    refuses to be asked for more.

    Args:
        ask: Sends a body and returns one page.
        body: The filter.
    """
    found: set[str] = set()
    read = 0
    while page := await ask({**body, "sort": "ID_DESC", "offset": read}):
        read += len(page)
        # A new record moves the others on to the next page.
        yield [record for record in page if record["id"] not in found]
        found.update(record["id"] for record in page)
