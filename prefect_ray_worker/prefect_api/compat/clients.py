"""Private names around Prefect's clients of its API, and their metrics."""

import logging
import ssl
from functools import wraps
from pathlib import Path
from typing import Any

import certifi
from prefect.settings import get_current_settings


def share_tls_context() -> None:
    """Let all clients of this process verify the API with one TLS context.

    Each client (`prefect.client.orchestration`, 3.8.8) makes a context of its own and reads all
    certificate authorities for it, also where the API is plain http: 30 ms and a megabyte, and a
    run has half a dozen clients. A client whose settings name a certificate or a version of HTTP
    keeps its own.
    """
    from prefect.client.orchestration import PrefectClient, SyncPrefectClient

    for kind in (PrefectClient, SyncPrefectClient):
        _share_context_of(kind)
    _shared_context()


def _share_context_of(kind: Any) -> None:
    make = kind.__init__
    if hasattr(make, "__wrapped__"):
        return

    @wraps(make)
    def with_shared_context(self: Any, api: Any, **options: Any) -> None:
        httpx_settings: dict[str, Any] = options.get("httpx_settings") or {}
        context = _shared_context() if isinstance(api, str) else None
        # httpcore writes the protocols of HTTP/1 or HTTP/2 into the context of a client.
        if context and not httpx_settings.keys() & {"verify", "cert", "http2", "http1"}:
            options["httpx_settings"] = {**httpx_settings, "verify": context}
        make(self, api, **options)

    kind.__init__ = with_shared_context


_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}


def _shared_context() -> ssl.SSLContext | None:
    """Return a context like Prefect's own (3.8.8), or None if it must make it, or fail, itself."""
    api = get_current_settings().api
    if api.tls_insecure_skip_verify:
        return None
    file = api.ssl_cert_file or certifi.where()
    try:
        found = Path(file).stat()
        # The certificates can be renewed.
        key = (file, found.st_ino, found.st_mtime_ns, found.st_size, api.enable_http2)
        if key not in _contexts:
            _contexts[key] = ssl.create_default_context(cafile=file)
    except OSError:  # one of `ssl`, too
        return None
    return _contexts[key]


def serve_client_metrics_if_possible() -> None:
    """Continue a run without its metrics endpoint if the endpoint's port is taken.

    Each run context starts the endpoint if `PREFECT_CLIENT_METRICS_ENABLED` is set. It fails with
    `OSError` if another run on the node uses the port (`prefect.context`, 3.8.8).
    """
    from prefect import context as module

    context: Any = module
    start = context.start_client_metrics_server

    def start_if_possible() -> None:
        try:
            start()
        except OSError as exc:
            context.start_client_metrics_server = _start_nothing
            logging.getLogger("prefect.flow_runs").warning(
                "This run serves no client metrics: port %s of the node cannot be used (%s). Give "
                "runs on one node a PREFECT_CLIENT_METRICS_PORT each, or unset "
                "PREFECT_CLIENT_METRICS_ENABLED.",
                get_current_settings().client.metrics.port,
                exc,
            )

    context.start_client_metrics_server = start_if_possible


def serve_no_client_metrics() -> None:
    """Disable the metrics endpoint, for whose port task processes would compete (3.8.8)."""
    from prefect import context as module

    context: Any = module
    context.start_client_metrics_server = _start_nothing


def _start_nothing() -> None:
    return None
