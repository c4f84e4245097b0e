"""The `RayCluster` block: the address of a Ray cluster and the credentials for it."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Self

from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient
from prefect.types import SecretDict
from pydantic import AfterValidator, Field, SecretStr, model_validator

from prefect_ray_worker._version import documentation_url
from prefect_ray_worker.ray_api.connection import Connection, frozen_items, normalize_address
from prefect_ray_worker.ray_api.tokens import TokenSource

LOGO_URL = "https://github.com/ray-project.png"

DashboardAddress = Annotated[str, AfterValidator(normalize_address)]
DashboardUrl = Annotated[str, AfterValidator(partial(normalize_address, variable="dashboard_url"))]


class RayCluster(Block):
    """Address of a Ray cluster's dashboard, and the credentials that it requires.

    Use it as the `cluster` job variable of a `ray` work pool. Token, headers and cookies are
    stored as secrets and never shown.

    Attributes:
        address: Address of the dashboard.
        token: Bearer token of the cluster (Ray token authentication).
        token_path: File on the worker's machine that holds the token.
        headers: Extra HTTP headers.
        cookies: HTTP cookies.
        verify: Whether to verify the TLS certificate.
        ca_file: File on the worker's machine with the authorities to trust.
        dashboard_url: Where people find the dashboard, if not at the address.

    Example:
        ```python
        from prefect_ray_worker import RayCluster

        RayCluster(address="http://ray-head:8265", token="…").save("research")
        ```
    """

    _block_type_name = "Ray Cluster"
    _block_type_slug = "ray-cluster"
    _logo_url = LOGO_URL  # pyright: ignore[reportAssignmentType]
    _documentation_url = documentation_url() or None  # pyright: ignore[reportAssignmentType]
    _description = (
        "Address of a Ray cluster's dashboard, and credentials for it. Use it as the `cluster` "
        "job variable of a `ray` work pool."
    )

    address: DashboardAddress = Field(
        description=(
            "Address of the Ray dashboard, with the path prefix of an ingress if there is one. "
            "Example: http://ray-head:8265"
        ),
        examples=["http://ray-head:8265"],
    )
    token: SecretStr | None = Field(
        default=None,
        description=(
            "Bearer token of a cluster with token authentication (Ray 2.52 and later), or a "
            "Kubernetes token where KubeRay checks those. Unset: the worker's own token "
            "(RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token), if its pool or its "
            "setting names this address."
        ),
    )
    token_path: str | None = Field(
        default=None,
        title="Token file",
        description=(
            "File on the worker's machine that holds the token; read again when the cluster "
            "answers 401. Only in a stored block, or below the worker's credentials folder. "
            "Example: /var/run/secrets/ray.io/serviceaccount/token"
        ),
    )
    headers: SecretDict | None = Field(
        default=None,
        description=(
            "Extra HTTP headers, for example of a proxy in front of the dashboard. "
            'Example: {"X-Api-Key": "…"}'
        ),
    )
    cookies: SecretDict | None = Field(
        default=None,
        description='HTTP cookies, for example of a login proxy. Example: {"session": "…"}',
    )
    verify: bool = Field(
        default=True,
        title="Verify TLS",
        description="Whether to verify the certificate of an https address.",
    )
    ca_file: str | None = Field(
        default=None,
        title="CA file",
        description=(
            "File on the worker's machine with the certificate authorities to trust, in PEM "
            "format. Only in a stored block, or below the worker's credentials folder. "
            "Example: /etc/ssl/company.pem"
        ),
    )
    dashboard_url: DashboardUrl | None = Field(
        default=None,
        title="Dashboard URL",
        description=(
            "Where people open the dashboard in a browser, if that is another address than the "
            "worker's: links on flow runs and in events use it, the worker never does. "
            "Example: https://ray.example.com/research"
        ),
        examples=["https://ray.example.com/research"],
    )

    @classmethod
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return the schema of Prefect's form for the block: a field that is empty is not set.

        For a value or null, the form would show a pair of toggles. The base job template keeps the
        null, which stored blocks hold.
        """
        schema = super().model_json_schema(*arguments, **options)
        for field in schema["properties"].values():
            kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
            if len(kinds) == 1:
                del field["anyOf"], field["default"]
                field.update(kinds[0])
        return schema

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.token is not None and self.token_path is not None:
            raise ValueError("token and token_path are both set; keep one of them")
        return self

    def connection(self) -> Connection:
        """Return the connection that the worker uses for this cluster."""
        return Connection(
            address=self.address,
            token=TokenSource(
                literal=self.token.get_secret_value() if self.token else None,
                path=self.token_path,
            ),
            headers=frozen_items(_revealed(self.headers)),
            cookies=frozen_items(_revealed(self.cookies)),
            verify=self.verify,
            ca_file=self.ca_file,
        )


async def register_block(client: PrefectClient, tell: Callable[[str], None]) -> None:
    """Register the `RayCluster` block type with the server, so that the UI can offer it.

    Never raises: the worker works without the form in the UI.

    Args:
        client: An open client.
        tell: Called with a one-line message if the registration fails.
    """
    try:
        await RayCluster.aregister_type_and_schema(client=client)
    except Exception as exc:  # noqa: BLE001 (see above)
        tell(
            f"The RayCluster block type could not be registered ({exc}); `prefect block register "
            "-m prefect_ray_worker.config.block` does it later."
        )


def _revealed(secret: SecretDict | None) -> dict[str, str]:
    values: dict[str, Any] = secret.get_secret_value() if secret else {}
    return {name: str(value) for name, value in values.items()}
