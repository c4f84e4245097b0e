"""`LoadedPlugin`: a source of clusters that another package has installed, and its errors."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeVar

import anyio
from pydantic import BaseModel, Secret, SecretBytes, SecretStr, ValidationError

from prefect_ray_worker.clusters.plugin import GROUP, ClusterPlugin
from prefect_ray_worker.config.cluster_source import COMMON_FIELDS
from prefect_ray_worker.config.refusals import explain
from prefect_ray_worker.errors import (
    ClusterSourceMissing,
    ClusterSourceUnclear,
    InvalidConfiguration,
)
from prefect_ray_worker.shared.masking import masked
from prefect_ray_worker.shared.plain_text import plain

_VARIABLE = "cluster_source"
_ANSWER_SECONDS = 30.0

T = TypeVar("T")


class SweptPlace(NamedTuple):
    """Where a plugin's clusters are, as far as its fields tell: equal fields are one place.

    Attributes:
        source: The plugin's name.
        fields: Its fields, as JSON without their secrets.
        secrets: A digest of the secrets: they can be all that tells two accounts apart.
    """

    source: str
    fields: str
    secrets: str

    @property
    def home(self) -> str:
        """The place without its secrets, for the record of a run. A renewed key changes nothing.

        Another home need not be another place: not every field says where clusters are.
        """
        text = "\0".join(self[:2])
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that is installed.

    Attributes:
        name: Of the source: the entry point's.
        plugin: The plugin.
        package: The distribution that has it, with its version.
    """

    name: str
    plugin: ClusterPlugin[Any]
    package: str

    def fields(self, given: dict[str, Any]) -> BaseModel:
        """Return the plugin's own fields of a `cluster_source`.

        Raises:
            InvalidConfiguration: One of them cannot work; the message names it, and no value.
        """
        own = {name: value for name, value in given.items() if name not in COMMON_FIELDS}
        model = self.plugin.Fields
        try:
            return model.model_validate(own)
        except ValidationError as exc:
            known = f"{', '.join(sorted(model.model_fields)) or 'no fields'}"
            # `from None`: pydantic's own text shows the raw input, secrets included.
            raise InvalidConfiguration(
                f"{explain(exc, own, within=_VARIABLE)}. The source {self.name!r} ({self.package}) "
                f"has {known}."
            ) from None

    def place(self, fields: BaseModel) -> SweptPlace:
        """Return where the clusters with some fields are."""
        digest = hashlib.sha256("\0".join(_secrets_in(fields)).encode(errors="surrogatepass"))
        return SweptPlace(self.name, fields.model_dump_json(), digest.hexdigest())

    @property
    def lists(self) -> bool:
        """Whether the plugin says which of its clusters exist."""
        return type(self.plugin).made is not ClusterPlugin.made

    async def ask(self, call: Callable[[ClusterPlugin[Any]], Awaitable[T]]) -> T:
        """Call the plugin; whatever it raises, or its silence, is one kind of error.

        Raises:
            ClusterSourceUnclear: It raised, or did not answer in time.
        """
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                return await call(self.plugin)
        except Exception as exc:
            silent = isinstance(exc, TimeoutError) and not str(exc)
            what = f"no answer within {_ANSWER_SECONDS:g} s" if silent else said_by(exc)
            raise ClusterSourceUnclear(
                f"The source of clusters {self.name!r} ({self.package}) does not say: {what}"
            ) from exc


def load_plugin(name: str) -> LoadedPlugin:
    """Return an installed plugin. Imports its package: run this in a thread.

    Raises:
        ClusterSourceMissing: It is not installed, or cannot be loaded.
    """
    installed = entry_points(group=GROUP)
    found = [point for point in installed if point.name == name]
    packages = sorted({_package_of(point) for point in found})
    if not found:
        others = ", ".join(sorted({point.name for point in installed})) or "none"
        raise ClusterSourceMissing(
            f"job variable 'cluster_source.type' is {name!r}, and no package on this machine has a "
            f"source of clusters of that name. Installed: {others}. Install the package that has "
            "it beside the worker, and start the worker again."
        )
    if len(packages) > 1:
        raise ClusterSourceMissing(
            f"Several packages have a source of clusters named {name!r}: {', '.join(packages)}. "
            "Uninstall all but one."
        )
    try:
        made = found[0].load()
        plugin = made()
    except Exception as exc:
        raise ClusterSourceMissing(
            f"The source of clusters {name!r} of {packages[0]} cannot be loaded ({said_by(exc)}). "
            "Update or repair that package, and start the worker again."
        ) from exc
    if not isinstance(plugin, ClusterPlugin):
        raise ClusterSourceMissing(
            f"The source of clusters {name!r} of {packages[0]} is no ClusterPlugin of this release "
            f"({found[0].value}). Update that package."
        )
    return LoadedPlugin(name, plugin, packages[0])


def _secrets_in(value: object) -> Iterator[str]:
    match value:
        case SecretStr() | SecretBytes() | Secret():
            yield repr(value.get_secret_value())
        case BaseModel():
            yield from _secrets_of_all(inner for _, inner in value)
        case Mapping():
            yield from _secrets_of_all(value.values())
        case list() | tuple():
            yield from _secrets_of_all(value)
        case _:
            pass


def _secrets_of_all(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        yield from _secrets_in(value)


def _package_of(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def said_by(exc: Exception) -> str:
    """Return an error in words, on one line, without passwords in addresses."""
    text = masked(plain(str(exc)))
    return " ".join(f"{type(exc).__name__}: {text}".split()) if text else type(exc).__name__
