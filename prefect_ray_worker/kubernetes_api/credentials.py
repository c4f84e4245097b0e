"""Where access to the API server comes from: a kubeconfig of a block, the pod, or the environment.

lightkube reads all of it: contexts, certificates, rotating token files and exec plugins. This file
only chooses among its ways, and refuses what a block must not do on the worker's machine, and what
lightkube would ignore: the worker would then reach another server, or as another user, than the
kubeconfig says.
"""

import base64
import hashlib
import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.shared.loopback import is_loopback_url

if TYPE_CHECKING:
    import httpx2
    from lightkube.config.kubeconfig import SingleConfig

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a pod finds the token of its service account."""

# What lightkube 1.0.1 does not read (`config/models.py`), and the way out.
_IGNORED_OF_CLUSTER = {
    "proxy-url": "Set HTTPS_PROXY in the worker's environment instead",
    "tls-server-name": "Let `server` name a host that the certificate is for",
}
_AS_ITSELF = "Give the rights to the worker's own user or service account, and remove it"
_IGNORED_OF_USER = {
    "as": _AS_ITSELF,
    "as-uid": _AS_ITSELF,
    "as-groups": _AS_ITSELF,
    "as-user-extra": _AS_ITSELF,
    "auth-provider": "Kubernetes 1.26 has removed it. Use an exec plugin, a token or a certificate",
}
# `config/client_adapter.py`: with any other version each request fails.
_EXEC_VERSIONS = (
    "client.authentication.k8s.io/v1beta1",
    "client.authentication.k8s.io/v1alpha1",
)

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)

_MISSING = (
    "KubeRay needs the package `lightkube`. Install the extra on the worker's machine: "
    "pip install 'prefect-ray-worker[kuberay]'."
)


@dataclass(frozen=True)
class Kubeconfig:
    """A kubeconfig from a block of type `kubernetes-cluster-config`. Hashable.

    Attributes:
        content: The kubeconfig as JSON.
        context: Name of the context to use; None for its current one.
    """

    content: str = field(repr=False)
    context: str | None = None

    @classmethod
    def of_block(cls, config: Mapping[str, Any], context_name: str | None = None) -> "Kubeconfig":
        """Return the kubeconfig of a block with the fields `config` and `context_name`."""
        return cls(json.dumps(config, sort_keys=True), context_name or None)


@dataclass(frozen=True)
class Access:
    """The way to one API server, with credentials.

    Attributes:
        server: Address of the API server, without a trailing slash.
        namespace: The namespace of the context or of the pod.
        is_inside: Whether these are the credentials of the pod that the worker runs in.
        home: Tells one Kubernetes from another, without a request and without any right in it.
        config: lightkube's configuration.
    """

    server: str
    namespace: str
    is_inside: bool
    home: str
    config: "SingleConfig" = field(repr=False)

    def authentication(self) -> "httpx2.Auth | None":
        """Return what adds credentials to a request, and renews them after a 401."""
        from lightkube.config.client_adapter import user_auth

        return user_auth(self.config.user)

    def tls(self) -> ssl.SSLContext:
        """Return the TLS settings: trusted authorities and client certificate. Reads files.

        Raises:
            InvalidConfiguration: A file or certificate cannot be used.
        """
        from lightkube.config.client_adapter import verify_cluster
        from lightkube.config.models import User

        user = self.config.user or User()
        try:
            return verify_cluster(self.config.cluster, user, self.config.abs_file)
        except (OSError, ValueError, TypeError) as exc:  # includes ssl.SSLError
            # `from None`: the cause can quote the certificate.
            raise InvalidConfiguration(
                f"A certificate of the kubeconfig for {self.server} cannot be used "
                f"({type(exc).__name__})."
            ) from None

    @property
    def is_loopback(self) -> bool:
        """Whether requests must not go through an HTTP proxy."""
        return is_loopback_url(self.server)


def load_access(kubeconfig: Kubeconfig | None) -> Access:
    """Return the way to the API server. Reads files; run it in a thread.

    Args:
        kubeconfig: A block's; None for the pod's service account, else the file `KUBECONFIG`, else
            `~/.kube/config`.

    Raises:
        InvalidConfiguration: There are no usable credentials, or lightkube is not installed.
    """
    try:
        from lightkube.config.kubeconfig import KubeConfig
        from lightkube.core.exceptions import ConfigError
    except ImportError:
        raise InvalidConfiguration(_MISSING) from None

    where = "`config` of the kubeconfig's block" if kubeconfig is not None else "the kubeconfig"
    try:
        if kubeconfig is not None:
            raw = json.loads(kubeconfig.content)
            found = KubeConfig.from_dict(raw).get(kubeconfig.context)
        else:
            found = KubeConfig.from_env(SERVICE_ACCOUNT).get()
            raw = _raw(found)
    except (ConfigError, OSError) as exc:
        _refuse_several_files()
        raise InvalidConfiguration(f"There is no access to Kubernetes: {exc}.") from exc
    except Exception as exc:  # noqa: BLE001 (a YAML or JSON of any shape; the cause can quote it)
        raise InvalidConfiguration(
            f"There is no access to Kubernetes: {where} is not a kubeconfig ({type(exc).__name__})."
        ) from None
    if found is None:
        raise InvalidConfiguration(f"There is no access to Kubernetes: {where} has no context.")
    _check_server(found.cluster.server)
    if kubeconfig is not None:
        _refuse_what_is_on_this_machine(found)
    _refuse_what_is_ignored(raw, found)
    token_file = found.user.token_file if found.user is not None else None
    return Access(
        server=found.cluster.server.rstrip("/"),
        namespace=found.namespace,
        is_inside=kubeconfig is None and (token_file or "").startswith(SERVICE_ACCOUNT + "/"),
        home=_home_of(found),
        config=found,
    )


def _home_of(found: "SingleConfig") -> str:
    """Return 12 hex digits of the authority that signs for the API server; of its URL without one.

    Each Kubernetes has an authority of its own, and says so inside and outside alike. Its URL says
    less: in the pods of many it is https://10.96.0.1:443.
    """
    cluster = found.cluster
    authority = ""
    try:
        if cluster.certificate_auth:
            authority = Path(found.abs_file(cluster.certificate_auth)).read_text()
        elif cluster.certificate_auth_data:
            authority = base64.b64decode(cluster.certificate_auth_data).decode()
    except (OSError, ValueError):
        pass  # `Access.tls` says so
    certificates = sorted("".join(text.split()) for text in _CERTIFICATE.findall(authority))
    named = "\n".join(certificates) or cluster.server.rstrip("/")
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def _check_server(server: str) -> None:
    import httpx2  # lightkube needs it, too

    try:
        parts = urlsplit(server)
        usable = parts.scheme in ("http", "https") and bool(httpx2.URL(server).host)
        usable = usable and parts.port != 0  # raises for a port that is none
    except (httpx2.InvalidURL, ValueError):
        raise InvalidConfiguration("`server` of the kubeconfig is not a URL.") from None
    if not usable or parts.username or parts.password or parts.query or parts.fragment:
        # Without its text: it can hold a password.
        raise InvalidConfiguration(
            "`server` of the kubeconfig must be https://host[:port][/path], without credentials."
        )
    if parts.scheme == "http" and not is_loopback_url(server):
        raise InvalidConfiguration(
            "`server` of the kubeconfig must begin with https://: the worker's credentials would "
            "cross the network in plain text. http is for this machine only (`kubectl proxy`)."
        )


def _raw(found: "SingleConfig | None") -> object:
    """Return the content of the kubeconfig's file; None for the service account of a pod."""
    if found is None or found.fname is None:
        return None
    import yaml  # lightkube needs it, too

    return yaml.safe_load(found.fname.expanduser().read_text())


def _refuse_several_files() -> None:
    named = os.environ.get("KUBECONFIG", "")
    if os.pathsep in named:
        raise InvalidConfiguration(
            "KUBECONFIG names several files, and lightkube reads one. Merge them with "
            "`kubectl config view --flatten`, and name the result."
        )


def _refuse_what_is_ignored(raw: object, found: "SingleConfig") -> None:
    """Refuse what lightkube does not read, by the name of its field."""
    cluster = _entry(raw, "clusters", "cluster", found.context.cluster)
    user = _entry(raw, "users", "user", found.context.user)
    wrong = [
        f"`clusters[].cluster.{name}`. {way_out}"
        for name, way_out in _IGNORED_OF_CLUSTER.items()
        if cluster.get(name)
    ]
    wrong += [
        f"`users[].user.{name}`. {way_out}"
        for name, way_out in _IGNORED_OF_USER.items()
        if user.get(name)
    ]
    plugin = user.get("exec")
    if isinstance(plugin, dict) and "token" not in user and "tokenFile" not in user:
        wrong += _ignored_of_plugin(cast("dict[str, Any]", plugin))
    if wrong:
        raise InvalidConfiguration(
            "The kubeconfig has what lightkube, with which this worker asks Kubernetes, does not "
            f"support: {'; '.join(wrong)}."
        )


def _ignored_of_plugin(plugin: dict[str, Any]) -> list[str]:
    wrong: list[str] = []
    if plugin.get("apiVersion") not in _EXEC_VERSIONS:
        wrong.append(
            "this `users[].user.exec.apiVersion`. Write client.authentication.k8s.io/v1beta1: the "
            "plugins of EKS, GKE and AKS speak that as well"
        )
    if plugin.get("provideClusterInfo"):
        wrong.append(
            "`users[].user.exec.provideClusterInfo`. Give the plugin what it needs by `args` or "
            "`env`, and remove it"
        )
    return wrong


def _entry(raw: object, kind: str, inner: str, name: str | None) -> dict[str, Any]:
    listed = cast("dict[str, Any]", raw).get(kind) if isinstance(raw, dict) else None
    for entry in listed or []:
        if entry.get("name") == name:
            return entry.get(inner) or {}
    return {}


def _refuse_what_is_on_this_machine(found: "SingleConfig") -> None:
    """Refuse commands and files in a block: its author need not have rights on this machine."""
    user, cluster = found.user, found.cluster
    asked = {
        "exec": user is not None and user.exec is not None,
        "tokenFile": user is not None and user.token_file is not None,
        "client-certificate": user is not None and user.client_cert is not None,
        "client-key": user is not None and user.client_key is not None,
        "certificate-authority": cluster.certificate_auth is not None,
    }
    if refused := [name for name, is_there in asked.items() if is_there]:
        raise InvalidConfiguration(
            f"The kubeconfig of a block must not use {', '.join(refused)}: that would run a "
            "command or read a file on the worker's machine. Write the data into the block, or "
            "set KUBECONFIG on the worker's machine and leave `kubeconfig` empty."
        )
