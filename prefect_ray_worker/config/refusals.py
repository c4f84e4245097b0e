"""What is wrong with the job variables of a run, in words that hold no secret.

A refusal stands in the state of the run, in logs and in an event, and a value may come from a
Secret block. So a refusal names the variable, the kind of its value and the way out. It shows
a value only where a secret cannot be: a number or a yes or no, of the few variables that take one.
"""

import copy
import difflib
import json
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from prefect.utilities.collections import set_in_dict
from prefect.utilities.templating import Placeholder, PlaceholderType, find_placeholders
from pydantic import BaseModel, ValidationError

from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.ray_api.models import JobSubmitRequest

# Ray passes the entrypoint as one argument of `sh -c`, and `runtime_env` with `metadata` as one
# environment variable. The kernel takes 128 KiB each; a job with more hangs PENDING (Ray issue
# 47432).
_LONGEST_ENTRYPOINT = 131_071
_LONGEST_ENVIRONMENT = 131_000

_SHOWN = frozenset(
    {
        "entrypoint_num_cpus",
        "entrypoint_num_gpus",
        "entrypoint_memory",
        "start_timeout_seconds",
        "run_timeout_seconds",
        "stop_grace_seconds",
        "forward_logs",
        "infrastructure_retries",
        "delete_job_after_seconds",
        "warm_driver_seconds",
        "setup_timeout_seconds",
        "eager_install",
        "verify",
    }
)
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "yes or no"),
    ((int, float), "a number"),
    (str, "a text"),
    ((dict, BaseModel), "a mapping"),
    ((list, tuple), "a list"),
    (type(None), "nothing"),
)


NO_MAPPING = 'is not a mapping of names to values. Write {"NAME": "value"}'


def near(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one most likely means."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.72)
    return close[0] if close else None


def refuse_unknown(
    values: Mapping[str, Any], template: Mapping[str, Any], known: Iterable[str]
) -> None:
    """Refuse a job variable that the work pool does not offer.

    Args:
        values: The job variables of deployment and run.
        template: The pool's base job template.
        known: The variables of this release.
    """
    offered = set(template.get("variables", {}).get("properties", {}))
    for key in values:
        name = key.partition(".")[0]
        if name in offered:
            continue
        close = near(name, offered)
        hint = f" Did you mean {close!r}?" if close else ""
        if name in known:
            hint = (
                " This release knows it: the pool leaves it out on purpose, or an older release "
                "made its base job template. Ask the pool's owner. To offer it, update the "
                "template with `prefect work-pool update --base-job-template`."
            )
        raise InvalidConfiguration(
            f"job variable {name!r} is not a variable of this work pool.{hint} It offers: "
            f"{', '.join(sorted(offered))}."
        )


def refuse_unmergeable(values: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    """Refuse what Prefect's merge raises a bare TypeError for (3.8.8).

    That is a field of a value that has none, because another job variable sets that value, and an
    `env` that is no mapping where the pool has one.

    Args:
        values: The job variables of deployment and run, in which `kuberay.head.cpus` is a field.
        template: The pool's base job template.
    """
    of_pool = [template.get("job_configuration", {}).get("env")]
    of_pool.append(
        template.get("variables", {}).get("properties", {}).get("env", {}).get("default")
    )
    env = values.get("env")
    if env and not isinstance(env, dict) and any(isinstance(one, dict) and one for one in of_pool):
        raise InvalidConfiguration(f"job variable 'env' {NO_MAPPING}.")
    merged: dict[str, Any] = {}
    for key, value in values.items():
        if "." not in key:
            continue
        try:
            set_in_dict(merged, key, copy.deepcopy(value))
        except TypeError:
            raise InvalidConfiguration(
                f"job variable {key!r} is a field of a value that another job variable sets, and "
                "that value has no fields. Remove one of the two."
            ) from None


def refuse_bad_references(values: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    """Refuse a reference to a block that Prefect's templating raises an AttributeError for (3.8.8).

    Args:
        values: The job variables of deployment and run.
        template: The pool's base job template, whose defaults count where nothing replaces them.
    """
    for source in _sources(values, template):
        for place in _bad_references(source):
            where = f"job variable {place[0]!r}" if len(place) == 1 else f"{'.'.join(place)!r}"
            raise InvalidConfiguration(
                f'{where} has a "$ref" that is no mapping. Write '
                '{"$ref": {"block_document_id": "<id of the block>"}}.'
            )


def _bad_references(
    value: object, path: tuple[str, ...] = ()
) -> Generator[tuple[str, ...], None, None]:
    if isinstance(value, dict):
        if not isinstance(value.get("$ref", {}), dict):
            yield path
        for key, inner in value.items():
            yield from _bad_references(inner, (*path, str(key)))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _bad_references(inner, (*path, str(at)))


def prefect_variables(
    values: Mapping[str, Any], template: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Return the Prefect variables that job variables refer to: name -> where it is used.

    Args:
        values: The job variables of deployment and run.
        template: The pool's base job template, whose defaults count where nothing replaces them.
    """
    used: dict[str, tuple[str, ...]] = {}
    for place, placeholder in _placeholders(values, template):
        if placeholder.type is PlaceholderType.VARIABLE:
            name = placeholder.name.removeprefix("prefect.variables.")
            used[name] = (*used.get(name, ()), place)
    return used


def missing_variable(name: str, places: tuple[str, ...]) -> InvalidConfiguration:
    """Return the refusal for a Prefect variable that does not exist.

    Prefect itself puts an empty text in its place and says nothing (3.8.8).
    """
    where = ", ".join(repr(place) for place in dict.fromkeys(places))
    return InvalidConfiguration(
        f"job variable {where} refers to the Prefect variable {name!r}, which does not exist. "
        f"Create it with `prefect variable set {name} …`, or correct the name."
    )


def unfilled_block(
    error: ValueError, values: Mapping[str, Any], template: Mapping[str, Any]
) -> InvalidConfiguration | None:
    """Return the refusal for a block's placeholder that Prefect cannot fill; None for other errors.

    Args:
        error: Prefect's bare ValueError (3.8.8). Its text shows the whole value.
        values: The job variables of deployment and run.
        template: The pool's base job template.
    """
    if type(error) is not ValueError:
        return None
    for place, placeholder in _placeholders(values, template):
        if placeholder.type is PlaceholderType.BLOCK_DOCUMENT and placeholder.name in str(error):
            return InvalidConfiguration(
                f"job variable {place!r} has the placeholder {placeholder.name!r}, which Prefect "
                "cannot fill. Write {{ prefect.blocks.<type>.<name>.<field> }} with a field that "
                "the block has; within a longer text, one that is a text or a number."
            )
    return None


def explain(error: ValidationError, known: Iterable[str], *, within: str | None = None) -> str:
    """Return for each mistake which variable it is in and what to do.

    Args:
        error: Of pydantic; its own text shows the raw input.
        known: The variables of this release.
        within: The variable whose fields were validated; None for the variables themselves.
    """
    outer = () if within is None else (within,)
    lines: dict[str, list[str]] = {}
    for mistake in error.errors(include_url=False):
        # pydantic puts the branches of a union (`list[str]`, `dict[…]`) into the path as well.
        path = tuple(str(p) for p in mistake["loc"] if not _is_union_branch(str(p)))
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden" and path[0] not in known:
            message = "is not known to this release; remove it from the pool's base job template"
        place = f"job variable {'.'.join((*outer, *path))!r}"
        if not path and within is None:
            place = "job variable 'env'"  # the only check on the configuration as a whole
        elif path and message.startswith(f"{path[-1]} "):
            message = message.removeprefix(f"{path[-1]} ")  # our own, which names the variable
        else:
            place += _shown(path or outer, mistake["input"])
            message = message[:1].lower() + message[1:]
        lines.setdefault(place, []).append(message)
    return "; ".join(f"{place} {', or '.join(messages)}" for place, messages in lines.items())


def refuse_auto_install(variables: Mapping[str, str | None]) -> None:
    """Refuse the setting of Prefect's runner that our driver does not know.

    With it Prefect's executor runs the flow under `uv run` in the project that the pull steps have
    fetched (3.8.8). Ray builds its environments before that, from `runtime_env`.
    """
    name = "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES"
    asked = str(variables.get(name) or "").strip().lower()
    if asked in ("", "0", "false", "no", "off", "f", "n"):
        return
    raise InvalidConfiguration(
        f"job variable 'env.{name}' has no effect on a Ray Job, whose environment Ray builds. List "
        "the packages in runtime_env.uv, which tasks on other nodes get too. Or set command to "
        "'exec python -m prefect flow-run execute', which honours it for the driver only."
    )


def refuse_oversized(request: JobSubmitRequest) -> None:
    """Refuse a job that is too large for Ray, and name the largest part.

    Raises:
        InvalidConfiguration: Entrypoint or environment are too large.
    """
    entrypoint = len(request.entrypoint.encode())
    if entrypoint > _LONGEST_ENTRYPOINT:
        raise InvalidConfiguration(
            f"job variable 'command' makes an entrypoint of {entrypoint} bytes, and Ray takes "
            f"{_LONGEST_ENTRYPOINT} at most. Put the text into a file in the image or the "
            "working_dir and run that."
        )
    environment = len(
        json.dumps({"runtime_env": request.runtime_env, "metadata": request.metadata})
    )
    if environment > _LONGEST_ENVIRONMENT:
        sizes = {
            **{f"env.{k}": len(v) for k, v in request.runtime_env["env_vars"].items()},
            **{
                f"runtime_env.{k}": len(json.dumps(v))
                for k, v in request.runtime_env.items()
                if k != "env_vars"
            },
            **{f"metadata.{k}": len(v) for k, v in request.metadata.items()},
        }
        largest = max(sizes, key=lambda name: sizes[name])
        raise InvalidConfiguration(
            f"job variables 'runtime_env', 'env' and 'metadata' make {environment} bytes, and "
            f"Ray takes {_LONGEST_ENVIRONMENT} at most: with more, the job would hang. The "
            f"largest is {largest!r} with {sizes[largest]} bytes; put it into a file."
        )


def kind_of(value: object) -> str:
    """Return what a value is, without the value."""
    return next((words for types, words in _KINDS if isinstance(value, types)), "a value")


def _shown(path: tuple[str, ...], value: object) -> str:
    if _SHOWN & set(path) and isinstance(value, bool | int | float):
        return f" = {value!r}"
    return f" ({kind_of(value)})"


def _is_union_branch(part: str) -> bool:
    return "[" in part or part in {"str", "int", "float", "bool", "constrained-str", "RuntimeEnv"}


def _placeholders(
    values: Mapping[str, Any], template: Mapping[str, Any]
) -> Generator[tuple[str, Placeholder], None, None]:
    """Yield each placeholder that counts, after the place where it stands."""
    for source in _sources(values, template):
        for path, text in _texts(source):
            for placeholder in find_placeholders(text):
                yield ".".join(path), placeholder


def _sources(
    values: Mapping[str, Any], template: Mapping[str, Any]
) -> tuple[Mapping[str, Any], ...]:
    """Return what the job's configuration is made of: the pool's, its defaults, and the values."""
    properties: Mapping[str, Any] = template.get("variables", {}).get("properties", {})
    defaults = {
        name: field.get("default")
        for name, field in properties.items()
        if name not in values or name == "env"
    }
    return template.get("job_configuration", {}), defaults, values


def _texts(
    value: object, path: tuple[str, ...] = ()
) -> Generator[tuple[tuple[str, ...], str], None, None]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _texts(inner, (*path, str(at)))
