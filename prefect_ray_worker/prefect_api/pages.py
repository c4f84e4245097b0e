"""`pages`: everything that a `/filter` endpoint of the Prefect API finds, one page at a time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Record = dict[str, Any]


async def pages(
    ask: Callable[[Record], Awaitable[list[Record]]], body: Record, *, at_most: int | None = None
) -> AsyncIterator[list[Record]]:
    """Yield the records that a filter finds, each once, until nothing more comes.

    The server decides how long a page is (`PREFECT_SERVER_API_DEFAULT_LIMIT`, 200 by default), and
    rejects requests for longer ones. So only an empty page is certain to be the last.

    Args:
        ask: Sends a body and returns one page.
        body: The filter.
        at_most: How many records there can be; saves the request for the empty page.
    """
    found: set[str] = set()
    read = 0
    while page := await ask({**body, "sort": "ID_DESC", "offset": read}):
        read += len(page)
        # A new record moves the others on to the next page.
        yield [record for record in page if record["id"] not in found]
        found.update(record["id"] for record in page)
        if at_most is not None and read >= at_most:
            return
