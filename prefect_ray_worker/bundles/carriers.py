"""How bundles travel: in the inputs of the flow run, in the pool's result storage, or through Ray.

Inputs are deleted with the run and are in no list of it. Prefect Cloud takes requests of 5 MiB, and
an nginx before a server takes 1 MiB, so content is cut into parts. Small content, as most flows
are, is in the header itself: one request instead of two, on both sides.
"""

import base64
import binascii
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.filesystems import WritableFileSystem

from prefect_ray_worker.bundles.header import BundleHeader
from prefect_ray_worker.errors import BundleDamaged, BundleMissing, BundleRefused
from prefect_ray_worker.prefect_api.answers import is_passing_error, seconds_asked_for
from prefect_ray_worker.prefect_api.compat.settings import saved_block_id
from prefect_ray_worker.shared.run_rules import Patience, is_own_not_found

T = TypeVar("T")

MOST_BYTES_IN_INPUTS = 4 * 1024 * 1024
"""How much one bundle, or one answer, puts into the inputs of its run."""

HEADER_KEY = "ray-bundle"

MOST_BYTES_IN_ONE = 384 * 1024
"""How much one input holds: 512 KiB in base 64."""

_ASK_SECONDS = 30.0
_WRITING_SECONDS = (0.5, 2.0, 5.0)
_NOT_FOUND, _CONFLICT, _TOO_LARGE = 404, 409, 413


class BlockStorage(Protocol):
    """Loads the storage block that holds a large bundle."""

    def __call__(self, block_id: UUID) -> WritableFileSystem:
        """Return the block."""
        ...


def header_of_stored(content: bytes, storage: WritableFileSystem) -> BundleHeader:
    """Store content that is too large for the inputs of a run, and return its header.

    Args:
        content: The bundle.
        storage: A saved block.

    Raises:
        BundleRefused: The block is not saved, so no driver could find it.
    """
    block_id = saved_block_id(storage)
    if block_id is None:
        raise BundleRefused(
            "The storage block for a large bundle is not saved. Call its save() first."
        )
    header = BundleHeader.of(content, carrier="storage", block=str(block_id))
    header = replace(header, path=f"ray-bundles/{header.sha256}.zip")
    written: Any = storage.write_path(header.path or "", content)
    _finished(written)
    return header


def send_bundle(
    client: SyncPrefectClient,
    flow_run_id: UUID,
    content: bytes,
    header: BundleHeader | None = None,
) -> BundleHeader:
    """Give a flow run its bundle; return its header, which comes last and makes it valid.

    Args:
        client: An open client.
        flow_run_id: The run.
        content: The bundle.
        header: Says where the content is, if that is elsewhere already.

    Raises:
        BundleRefused: It is too large, or the run has another bundle.
    """
    header = header or _header_of_inputs(client, flow_run_id, content)
    write_input(client, flow_run_id, HEADER_KEY, header.to_json())
    return header


def _header_of_inputs(client: SyncPrefectClient, flow_run_id: UUID, content: bytes) -> BundleHeader:
    """Return the header of content that travels in the run; write what it does not hold itself."""
    if len(content) <= MOST_BYTES_IN_ONE:
        text = base64.b64encode(content).decode()
        return BundleHeader.of(content, carrier="header", content=text)
    if len(content) > MOST_BYTES_IN_INPUTS:
        raise BundleRefused("The bundle is too large for the inputs of a flow run.")
    parts = send_parts(client, flow_run_id, f"{HEADER_KEY}-part", content)
    return BundleHeader.of(content, carrier="inputs", parts=parts)


def read_header(client: SyncPrefectClient, flow_run_id: UUID) -> BundleHeader:
    """Return the header of a run's bundle.

    Raises:
        BundleMissing: The run has no bundle.
        BundleDamaged: Its header cannot be read.
    """
    text = read_input(client, flow_run_id, HEADER_KEY)
    if text is None:
        raise BundleMissing("The flow run has neither a deployment nor a bundle.")
    return BundleHeader.parse(text)


def read_content(
    client: SyncPrefectClient, flow_run_id: UUID, header: BundleHeader, load: BlockStorage
) -> bytes:
    """Return the content of a run's bundle, which is certainly what its caller packed.

    Args:
        client: An open client.
        flow_run_id: The run.
        header: The bundle's header.
        load: Loads the block of a large bundle.

    Raises:
        BundleMissing: A part of it does not exist.
        BundleDamaged: It is something else.
    """
    match header.carrier:
        case "header":
            content = decoded(header.content or "", "The bundle")
        case "inputs":
            content = read_parts(client, flow_run_id, f"{HEADER_KEY}-part", header.parts)
        case "cluster":
            content = _brought_by_ray(header.path or "")
        case _:
            return _stored(header, load)
    header.check_content(content)
    return content


def _stored(header: BundleHeader, load: BlockStorage) -> bytes:
    """Return the content that a storage block has.

    Calls with equal content write the same file. In a folder, it is not whole while another call
    writes it.
    """
    for pause in _WRITING_SECONDS:
        content = _read(header, load)
        if header.describes(content):
            return content
        time.sleep(pause)
    content = _read(header, load)
    header.check_content(content)
    return content


def _read(header: BundleHeader, load: BlockStorage) -> bytes:
    try:
        storage = load(UUID(header.block or ""))
        return _finished(storage.read_path(header.path or ""))
    except (OSError, ValueError, ObjectNotFound) as exc:
        raise BundleMissing(
            f"The bundle is not at {header.path} of its storage block ({exc})."
        ) from exc


def _brought_by_ray(name: str) -> bytes:
    """Return a file of one of the job's `py_modules`, which Ray puts on Python's path."""
    for folder in sys.path:
        path = Path(folder) / Path(name).name
        if path.is_file():
            return path.read_bytes()
    raise BundleMissing(f"The file {name} is in none of the py_modules of this job.")


def send_parts(client: SyncPrefectClient, flow_run_id: UUID, prefix: str, content: bytes) -> int:
    """Write content into inputs of a run whose keys begin with a prefix; return how many."""
    starts = range(0, len(content), MOST_BYTES_IN_ONE)
    for number, start in enumerate(starts):
        text = base64.b64encode(content[start : start + MOST_BYTES_IN_ONE]).decode()
        write_input(client, flow_run_id, f"{prefix}-{number}", text)
    return len(starts)


def read_parts(client: SyncPrefectClient, flow_run_id: UUID, prefix: str, parts: int) -> bytes:
    """Return what `send_parts` wrote.

    Raises:
        BundleMissing: A part does not exist.
        BundleDamaged: A part is no base64.
    """
    found: list[bytes] = []
    for number in range(parts):
        text = read_input(client, flow_run_id, f"{prefix}-{number}")
        if text is None:
            raise BundleMissing(f"Part {number + 1} of {parts} is not among the run's inputs.")
        found.append(decoded(text, f"Part {number + 1} of {parts}"))
    return b"".join(found)


def decoded(text: str, what: str) -> bytes:
    """Return what a text in base 64 stands for.

    Raises:
        BundleDamaged: It is something else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BundleDamaged(f"{what} is damaged.") from None


def write_input(client: SyncPrefectClient, flow_run_id: UUID, key: str, value: str) -> None:
    """Create an input of a run; one that exists with the same value is one that we created.

    The API never replaces an input (409). So after a lost answer, writing it again does no harm.

    Raises:
        BundleRefused: The input exists with another value, or a proxy refuses its size.
    """
    try:
        patiently(lambda: client.create_flow_run_input(flow_run_id, key, value))
    except (PrefectHTTPStatusError, httpx.HTTPStatusError) as exc:
        if exc.response.status_code == _CONFLICT:
            if read_input(client, flow_run_id, key) == value:
                return
            raise BundleRefused(
                f"The flow run {flow_run_id} has another bundle already ({key})."
            ) from exc
        if exc.response.status_code == _TOO_LARGE:
            raise BundleRefused(
                f"What is in front of the Prefect API refuses requests of {len(value) // 1024} "
                "KiB (HTTP 413). Have its administrator allow 1 MiB."
            ) from exc
        raise


def read_input(client: SyncPrefectClient, flow_run_id: UUID, key: str) -> str | None:
    """Return an input of a run, or None if the API says that there is none."""
    try:
        return patiently(lambda: client.read_flow_run_input(flow_run_id, key))
    except ObjectNotFound:
        return None
    except (PrefectHTTPStatusError, httpx.HTTPStatusError) as exc:
        response = exc.response
        if response.status_code == _NOT_FOUND and is_own_not_found(response.content):
            return None
        raise


def patiently(
    ask: Callable[[], T], seconds: float = _ASK_SECONDS, *, deadline: float | None = None
) -> T:
    """Ask the Prefect API until it answers: it may be restarting, or have too much to do.

    Args:
        ask: Sends the request; can be called again without harm.
        seconds: For how long after the first failure. Prefect's client has repeated the request for
            a minute by then, or waited for as long as the server asked (3.8.8).
        deadline: A moment of the monotonic clock after which no more attempts are made.

    Raises:
        Exception: What `ask` raised last, or what waiting does not mend.
    """
    patience: Patience | None = None
    while True:
        try:
            return ask()
        except (PrefectHTTPStatusError, httpx.HTTPError, ObjectNotFound) as exc:
            if not is_passing_error(exc):
                raise
            now = time.monotonic()
            if patience is None:
                left = seconds if deadline is None else min(seconds, deadline - now)
                patience = Patience(left, now=now)
            delay = patience.wait(now, at_least=seconds_asked_for(exc))
            if delay is None:
                raise
        time.sleep(delay)


def _finished(result: Any) -> Any:
    """Return the value of a block's method, which is a coroutine where an event loop runs."""
    import inspect

    if inspect.isawaitable(result):
        from prefect.utilities.asyncutils import run_coro_as_sync

        async def awaited() -> Any:
            return await result

        return run_coro_as_sync(awaited())
    return result
