"""Collects what the package can say to a user: its errors and warnings, from the code itself."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ways_out import OF_KINDS, OF_MESSAGES

from prefect_ray_worker import errors
from prefect_ray_worker.prefect_api.flow_runs import DEPLOYMENT_SLOT_LOST
from prefect_ray_worker.shared.ids import INFRASTRUCTURE_RETRY

PACKAGE = Path(errors.__file__).parent
ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.RayWorkerError)
}
# Raised in Prefect's or in Python's name, for users; pydantic shows a ValueError of a field.
_OTHERS = {"InfrastructureNotFound", "InfrastructureNotAvailable", "CrashedRun", "TypeError"}
# Functions that make an error of ours of a text.
MAKERS = {
    "start_failed": "ClusterFailed",
    "_refusal": "InvalidConfiguration",
    "self._unusable": "BundleRefused",
}
_LEVELS = {"warning", "error", "exception", "critical"}
_OF_FIELDS = ("config/", "settings", "task_runner/")
_HOLE = "…"


@dataclass(frozen=True)
class Message:
    """A message as it stands in the code.

    Attributes:
        kind: The class of an error, or the level of a line in a log.
        text: Its words; `…` stands for what differs.
        place: The file, relative to the package.
    """

    kind: str
    text: str
    place: str

    @property
    def folder(self) -> str:
        """The folder that says it, or the file in the root."""
        return self.place.partition("/")[0].removesuffix(".py")

    @property
    def says_what_to_do(self) -> bool:
        """Whether there is more than the fact."""
        return bool(re.search(r"[.:;] \S", self.text.rstrip(_HOLE)))


def collect(package: Path = PACKAGE) -> list[Message]:
    """Return every message of a package, in the order of files."""
    found: dict[Message, None] = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        texts = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        place = str(path.relative_to(package))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                for kind, argument in _said(node, place):
                    text = " ".join(_text(argument, texts).split())
                    if text.strip(f"{_HOLE} .:;"):
                        found[Message(kind, text, place)] = None
    return list(found)


def _said(call: ast.Call, place: str) -> Iterator[tuple[str, ast.expr]]:
    """Yield the kind and the text of what a call says to users, if it does."""
    name = ast.unparse(call.func)
    bare = name.rpartition(".")[2]
    if isinstance(call.func, ast.Attribute) and bare in _LEVELS and "log" in name.lower():
        yield ("error" if bare != "warning" else "warning"), call.args[0]
    elif bare in ERRORS | _OTHERS and call.args:
        yield bare, call.args[0]
    elif name in MAKERS and call.args:
        yield MAKERS[name], call.args[-1]
    elif bare == "ValueError" and place.startswith(_OF_FIELDS) and call.args:
        yield bare, call.args[0]


def _text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    """Return an expression's words."""
    match node:
        case ast.Constant(value=str(value)):
            return re.sub(r"%(\.\d+)?[srgdf]", _HOLE, value)
        case ast.JoinedStr(values=values):
            return "".join(_text(value, known) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, known) + _text(right, known)
        case ast.Name(id=name) if name in known:
            return _text(known[name], {})
        case ast.FormattedValue(value=ast.Name(id=name)) if name in known:
            return _text(known[name], {})
        case _:
            return _HOLE


_FOLDERS = {
    "config": "Job variables and the block",
    "settings": "Settings of the worker",
    "commands": "Commands",
    "clusters": "Clusters",
    "ray_api": "Ray's Jobs API",
    "kubernetes_api": "Kubernetes",
    "runs": "Runs",
    "prefect_api": "Prefect's API",
    "logs": "Logs of jobs",
    "driver": "The driver",
    "task_runner": "Tasks",
    "adhoc": "Flows without a deployment",
    "bundles": "Bundles of flows without a deployment",
    "doctor": "The doctor",
    "worker": "The worker",
}
# Names of states that a run has because of this package, each with its reader's way on.
STATES = {
    "InfrastructurePending": (
        "Pending",
        "The job, or the cluster that is made for the run, has not started. The state's message "
        "says what it waits for.",
        "Free or add what it waits for, or cancel the run.",
    ),
    INFRASTRUCTURE_RETRY: (
        "Scheduled",
        "The infrastructure failed, and `infrastructure_retries` allows another attempt. The "
        "message says what failed, and counts the attempts.",
        "Nothing: a worker starts the run again at the scheduled time.",
    ),
    DEPLOYMENT_SLOT_LOST: (
        "Pending",
        "The run lost its slot of the deployment's concurrency limit before its flow began.",
        "Raise `concurrency_limit.grace_period_seconds` of the deployment.",
    ),
    "AwaitingRetry": (
        "Scheduled",
        "Prefect's own: a task or flow is tried again. A task that `infra_retries` runs again has "
        'a message that begins with "Run again by infra_retries".',
        "Nothing: it is tried again.",
    ),
    "NotLoaded": (
        "Crashed",
        "A task could not be loaded on its node: a module is missing there, for example.",
        "Install it in the image, or see which folder is shipped: "
        "[Fan tasks out](../how-to/fan-out.md).",
    ),
    "Unsendable": (
        "Failed",
        "A task has run, but its result cannot be pickled, so nothing outside its process can "
        "have it.",
        "Return what can be pickled, or None.",
    ),
    "Crashed": (
        "Crashed",
        "The infrastructure failed, or the flow could not be started. The message begins with a "
        "category.",
        "Look up the category under [Diagnosis](diagnosis.md).",
    ),
}


def way_out(message: Message) -> str | None:
    """Return what to do about a message: empty if it says so itself, None if nobody does."""
    if way := OF_MESSAGES.get(message.text):
        return way
    is_error = message.kind not in _LEVELS
    if is_error and (way := OF_KINDS.get(message.kind)) and not message.says_what_to_do:
        return way
    # A line in a log that states two facts tells its reader too little: it needs an entry, unless
    # it says "set", "put" or the like.
    return "" if message.says_what_to_do and (is_error or _ASKS.search(message.text)) else None


_ASKS = re.compile(r"[.:;] (?:[^.]*\b)?(Set|Put|Give|Leave|Raise|Run|Ask|cancel|Otherwise|put) ")


def page() -> str:
    """Return the page of all messages, by topic."""
    found = collect()
    parts = [
        "# Messages",
        "<!-- Generated by `make docs` from the calls in prefect_ray_worker; do not edit. -->",
        "Look up a message: search this page for a few of its words. `…` stands for the parts that "
        "differ. This page has every error, and every warning or error in a log, as in the code. "
        "Most messages say what to do; for the others the last column does. A message without a "
        "subject follows the name of a job variable. The message of a Crashed run "
        "begins with a category: look that up under [Diagnosis](diagnosis.md). "
        "[Errors](errors.md) says what the worker does about each class.",
        "## States",
        _table(
            ["state", "type", "cause", "what to do"],
            [[f"`{name}`", *told] for name, told in STATES.items()],
        ),
    ]
    for folder, topic in _FOLDERS.items():
        said = sorted(
            (m for m in found if m.folder == folder), key=lambda m: (m.kind in _LEVELS, m.text)
        )
        if said:
            rows = [
                [_escaped(m.text), m.kind if m.kind in _LEVELS else f"`{m.kind}`", way_out(m) or ""]
                for m in said
            ]
            parts += [f"## {topic}", _table(["message", "kind", "what to do"], rows)]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(text: str) -> str:
    """Return words as they are shown, whatever Markdown or HTML would make of them."""
    # An underscore inside a word is only itself.
    special = r"[*<>\[\]|]|(?<!\w)_|_(?!\w)"
    shown = re.sub(special, lambda found: f"&#{ord(found[0])};", text)
    # Inside code, entities would be shown as such.
    return re.sub(r"`[^`]*`", lambda code: _in_code(code[0]), shown)


def _in_code(code: str) -> str:
    plain = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), code)
    return plain.replace("|", "\\|")
