"""Read the body of an answer, and never more of it than there is room for.

The other side may be broken, hostile or a proxy's page. 204 KB of gzip made 471 MB of text here.
"""

from collections.abc import AsyncIterator

import httpx

PLAIN = {"Accept-Encoding": "identity"}
"""For every request: a compressed answer has no known size, and a range of it means other bytes."""

# Ray's longest answer is that of /api/v0/nodes, with less than 1 KB for each of 10,000 nodes.
_MOST = 32 * 1024 * 1024
# An error is a traceback at most; of a longer one the class is known all the same.
_MOST_OF_AN_ERROR = 256 * 1024
_CHUNK = 64 * 1024


class UnusableBody(ValueError):
    """The body of an answer is too large, or in a form that was not asked for."""


async def plain_chunks(response: httpx.Response, size: int) -> AsyncIterator[bytes]:
    """Iterate over a body that has not been compressed.

    Raises:
        UnusableBody: It has been.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnusableBody("a compressed body, which was not asked for")
    async for chunk in response.aiter_bytes(size):
        yield chunk


async def whole(response: httpx.Response) -> httpx.Response:
    """Return an answer with all of its body.

    Raises:
        UnusableBody: The body is compressed, or longer than any answer of Ray's.
    """
    kept = bytearray()
    async for chunk in plain_chunks(response, _CHUNK):
        kept += chunk
        if len(kept) > _MOST:
            raise UnusableBody(f"more than {_MOST >> 20} MiB")
    return _with_body(response, bytes(kept))


async def beginning(response: httpx.Response) -> httpx.Response:
    """Return an answer, for an error, with at most the first 256 KiB of its body."""
    kept = bytearray()
    try:
        async for chunk in plain_chunks(response, _CHUNK):
            kept += chunk
            if len(kept) > _MOST_OF_AN_ERROR:
                break
    except UnusableBody:
        kept.clear()
    return _with_body(response, bytes(kept[:_MOST_OF_AN_ERROR]))


def _with_body(response: httpx.Response, body: bytes) -> httpx.Response:
    kept = {
        name: value
        for name in ("Content-Type", "Location")
        if (value := response.headers.get(name)) is not None
    }
    return httpx.Response(response.status_code, headers=kept, content=body)
