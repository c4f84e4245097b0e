"""The fields of a job's `runtime_env`, and the precedence of its environment variables.

Pure. Later rows win:

| source                                   | where it goes                     |
|------------------------------------------|-----------------------------------|
| settings of the worker's own process     | `runtime_env.env_vars`            |
| secrets that the worker delivers         | `runtime_env.env_vars`            |
| our defaults for Ray                     | `runtime_env.env_vars`            |
| the user's `runtime_env.env_vars`        | `runtime_env.env_vars`            |
| the user's `env`                         | `runtime_env.env_vars`            |
| what differs from run to run             | the job's metadata, or exported   |
|                                          | by the entrypoint                 |

Ray expands every `$NAME` in these values on the node and has no escape. In the user's `env`
only `${UPPER_CASE}` means a variable of the node; any other `$` arrives as written. The user's
`runtime_env.env_vars` is Ray's own field and goes to Ray unchanged.

Ray keeps every distinct runtime environment as long as a node lives, so values that differ from
run to run must not be in it.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from prefect_ray_worker.config.refusals import near
from prefect_ray_worker.shared.plain_text import plain

_URI = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_INSTALLERS = ("pip", "uv", "conda")
# ray/_private/runtime_env/image_uri.py and runtime_env.py, Ray 2.60.
_BESIDE_IMAGE = frozenset({"image_uri", "config", "env_vars"})
# Keys of Ray without a field of ours (`ray/runtime_env/runtime_env.py`, Ray 2.60).
_ONLY_RAYS: frozenset[str] = frozenset(
    {
        "py_executable",
        "java_jars",
        "container",
        "worker_process_setup_hook",
        "nsight",
        "_nsight",
        "rocprof-sys",
        "_rocprof_sys",
        "mpi",
    }
)
_BESIDE_CONTAINER = frozenset({"container", "config", "env_vars"})

# Ray expands one variable after the other, in alphabetical order (`_private/utils.py`, Ray 2.60):
# one that sorts first can stand for the "$" in all the others. Shells ignore such a name.
_DOLLAR = "0_DOLLAR"
_A_DOLLAR = "${0_DOLLAR}"
_LONE_DOLLAR = re.compile(r"\$(?!\{[A-Z_][A-Z0-9_]*\})")


def _remote_uri(value: object) -> object:
    if isinstance(value, str) and not _URI.match(value):
        raise ValueError(
            "is a path on the worker's machine, which the cluster cannot see. Give a URI "
            "(s3://…, gs://…, https://… of a zip, or local:///… for a folder in the image), or "
            "leave it out and use the deployment's pull steps"
        )
    return value


RemoteUri = Annotated[str, BeforeValidator(_remote_uri)]


def as_text(value: Any) -> Any:
    """Return a number or a yes or no of YAML as the text of an environment variable or label."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def check_names(variables: Mapping[Any, object]) -> None:
    """Refuse environment variables that no process can have: the job's set-up would fail.

    Raises:
        ValueError: One has such a name. What follows a `=` in it is not shown: it is a value.
    """
    for name in map(str, variables):
        shown, equals, _ = name.partition("=")
        if equals or not name or "\0" in name:
            named = plain(shown) + ("=…" if equals else "")
            raise ValueError(
                f"has a variable named {named!r}. A name is not empty, and has neither '=' nor a "
                'NUL. Write {"NAME": "value"}'
            )


# The server checks job variables against this before a run is made (Prefect 3.8.8).
Text = Annotated[
    str,
    BeforeValidator(as_text),
    WithJsonSchema({"anyOf": [{"type": t} for t in ("string", "number", "boolean")]}),
]


def _requirements(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(  # noqa: TRY004 (pydantic collects these only)
            "is a text, and Ray would read it as a file of the worker's machine. Write a list: "
            '["pandas==2.2.3"]'
        )
    if isinstance(value, list) and not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError("has an entry that is no text, or an empty one. Remove or complete it")
    return value


Requirements = Annotated[list[str] | dict[str, Any], BeforeValidator(_requirements)]


class RuntimeEnvConfig(BaseModel):
    """How Ray builds the environment; other keys go to Ray unchanged."""

    model_config = ConfigDict(extra="allow", title="Set-up options")

    setup_timeout_seconds: int | None = Field(
        default=None,
        ge=-1,
        title="Set-up timeout (seconds)",
        description=(
            "Limit for building the environment; -1 for none. Ray's default is 600, and it "
            "tries three times. Example: 900"
        ),
        examples=[900],
    )
    eager_install: bool | None = Field(
        default=None,
        title="Eager install",
        description="Build it when the job starts (Ray's default) or at first use.",
    )


class RuntimeEnv(BaseModel):
    """The environment of the flow's driver and its tasks; other keys go to Ray unchanged."""

    model_config = ConfigDict(extra="allow", title="Runtime environment")

    pip: Requirements | None = Field(
        default=None,
        title="pip packages",
        description=(
            "Packages to install with pip, cached on each node. Example: "
            '["pandas==2.2.3", "pyarrow"]. Or a mapping with Ray\'s options (packages, '
            "pip_version, pip_install_options, pip_check)."
        ),
        examples=[["pandas==2.2.3", "pyarrow"]],
    )
    uv: Requirements | None = Field(
        default=None,
        title="uv packages",
        description=(
            'Packages to install with uv, much faster than pip. Example: ["polars"]. '
            "Only one of pip, uv and conda."
        ),
        examples=[["polars"]],
    )
    conda: str | dict[str, Any] | None = Field(
        default=None,
        title="conda environment",
        description=(
            "Name of an environment that exists on the nodes, or the content of an "
            'environment.yml as a mapping. Example: "pytorch-p310"'
        ),
        examples=["pytorch-p310"],
    )
    image_uri: str | None = Field(
        default=None,
        title="Container image",
        description=(
            "Run the job in this image (podman on the nodes). Only env and config may stand "
            "beside it. Example: docker.io/rayproject/ray:2.60.0-py311"
        ),
        examples=["docker.io/rayproject/ray:2.60.0-py311"],
    )
    working_dir: RemoteUri | None = Field(
        default=None,
        title="Working directory",
        description=(
            "URI of a zip that every node unpacks and runs in, or local:///path of a folder "
            "in the image. Example: s3://bucket/code.zip"
        ),
        examples=["s3://bucket/code.zip"],
    )
    py_modules: list[RemoteUri] | None = Field(
        default=None,
        title="Python modules",
        description="URIs of packages to put on the import path. Example: s3://bucket/lib.zip",
        examples=[["s3://bucket/lib.zip"]],
    )
    excludes: list[str] | None = Field(
        default=None,
        description="Patterns that Ray leaves out when a job uploads a folder. Example: *.csv",
        examples=[["*.csv"]],
    )
    config: RuntimeEnvConfig | None = Field(
        default=None, title="Set-up options", description="How Ray builds the environment."
    )
    env_vars: dict[str, Text] | None = Field(
        default=None,
        title="Environment variables (Ray's field)",
        description=(
            "Like the job variable env, which wins where both name a variable, but Ray expands "
            "every $NAME in the values on the node; in env only ${UPPER_CASE} is expanded. "
            'Example: {"PYTHONPATH": "$HOME/lib:$PYTHONPATH"}'
        ),
        examples=[{"PYTHONPATH": "$HOME/lib:$PYTHONPATH"}],
    )

    @field_validator("env_vars")
    @classmethod
    def _has_names(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        check_names(value or {})
        return value

    @model_validator(mode="after")
    def _knows_its_keys(self) -> Self:
        # Other unknown keys pass: they may be those of a newer Ray or of a plugin on the nodes.
        for key in self.model_extra or {}:
            close = near(key, {*type(self).model_fields, *_ONLY_RAYS})
            if close is not None and key not in _ONLY_RAYS:
                raise ValueError(
                    f"has a key {key!r} that Ray does not know. Did you mean {close!r}?"
                )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = set(self.as_ray())
        installers = [name for name in _INSTALLERS if name in named]
        if len(installers) > 1:
            raise ValueError(
                f"names {' and '.join(installers)}, and Ray takes only one of pip, uv and "
                "conda. Move all packages to one of them"
            )
        for key, allowed in (("image_uri", _BESIDE_IMAGE), ("container", _BESIDE_CONTAINER)):
            if key in named and (extra := sorted(named - allowed)):
                raise ValueError(
                    f"names {key} together with {', '.join(extra)}, which Ray refuses. Put "
                    "packages and code into the image"
                )
        return self

    def as_ray(self) -> dict[str, Any]:
        """Return the keys that the user set, in Ray's form."""
        return self.model_dump(mode="json", exclude_none=True)


def compose(
    asked: RuntimeEnv,
    *,
    inherited: Mapping[str, str],
    env: Mapping[str, str],
    stop_grace_seconds: float,
    package: str | None = None,
) -> dict[str, Any]:
    """Build the `runtime_env` of a job by the table above.

    Args:
        asked: The user's runtime environment.
        inherited: Prefect settings and references to secrets.
        env: The user's `env` job variable.
        stop_grace_seconds: Seconds that Ray waits between SIGTERM and SIGKILL. Its default of 3 s
            is too short for a flow's hooks. Ray reads the limit from the job's own environment
            and parses it as an integer (`job_supervisor.py`, Ray 2.60).
        package: URI of our own package, which goes before the user's `py_modules`.

    Returns:
        A new dict in a stable order, so that equal jobs share one environment on a node.
    """
    result = asked.as_ray()
    if package is not None:
        result["py_modules"] = [package, *(asked.py_modules or [])]
    env_vars = {
        **_literal(inherited),
        "RAY_JOB_STOP_WAIT_TIME_S": str(max(1, math.ceil(stop_grace_seconds))),
        **(asked.env_vars or {}),
        **_literal(env),
    }
    if any(_A_DOLLAR in value for value in env_vars.values()):
        env_vars[_DOLLAR] = "$"
    result["env_vars"] = dict(sorted(env_vars.items()))
    return dict(sorted(result.items()))


def can_ship(asked: RuntimeEnv) -> bool:
    """Return whether our package can be shipped: Ray takes none beside an image."""
    return not {"image_uri", "container"} & set(asked.as_ray())


def _literal(values: Mapping[str, str]) -> dict[str, str]:
    """Protect every `$` from Ray's expansion, except in `${UPPER_CASE}`."""
    return {name: _LONE_DOLLAR.sub(_A_DOLLAR, value) for name, value in values.items()}
