"""Writes the reference pages that are generated from the code: `make docs`.

With `--check` it writes nothing and fails if a page is stale; `make check` and a test do that.
"""

import inspect
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from prefect_ray_worker.commands.app import app
from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.config.secrets import TRAVELS
from prefect_ray_worker.doctor.report import CheckSubject, Grade, KubeRaySubject, SourceSubject
from prefect_ray_worker.metrics import ALL
from prefect_ray_worker.prefect_api.cluster_events import ClusterHappening, ClusterLabel
from prefect_ray_worker.prefect_api.events import Happening, Label
from prefect_ray_worker.settings import RayWorkerSettings
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.worker import RayWorker

HERE = Path(__file__).parent
TOUR = HERE.parent / "examples" / "notebook" / "tour.ipynb"
Schema = dict[str, Any]


def job_variables() -> str:
    """Return the page of the job variables, from the schema that the UI shows."""
    schema = RayWorker.get_default_base_job_template()["variables"]
    definitions = schema["definitions"]
    parts = [
        "# Job variables",
        _generated("the work pool's schema"),
        "Look up what you can set for a run. All variables are optional. Set them on the work pool "
        "(its base job template), on a deployment (`job_variables`), or on a single run. A run's "
        "value wins over a deployment's, and that over the pool's. If the pool does not offer a "
        "variable, or a value cannot work, the run is Crashed before anything is submitted, with a "
        "message that names the variable.",
        *(_variable(name, field, definitions) for name, field in schema["properties"].items()),
        "## The fields of `runtime_env`",
        "The worker passes on any other key that Ray knows.",
        _table(definitions["RuntimeEnv"], definitions),
        "### `runtime_env.config`",
        _table(definitions["RuntimeEnvConfig"], definitions),
        "## The fields of `kuberay`",
        "A deployment or a run can set single fields, with `kuberay.image` or with a mapping of "
        "some fields, and keeps the pool's other fields. "
        "[A cluster for each run](../how-to/cluster-per-run.md) shows how.",
        _table(definitions["KubeRay"], definitions),
        "### `kuberay.head`",
        _table(definitions["KubeRayHead"], definitions),
        "### An entry of `kuberay.workers`",
        _table(definitions["KubeRayWorkerGroup"], definitions),
        "## The fields of `cluster_source`",
        "The fields are `type` (required), `start_timeout_seconds`, `keep_failed_seconds`, and "
        "those of the source itself. Deployments and runs can set single fields, as for "
        "`kuberay`: [Write a source of clusters](../how-to/write-a-source-of-clusters.md).",
        "## The `RayCluster` block",
        "Create it in the UI (Blocks, Ray Cluster) or from Python; the variable `cluster` uses it.",
        _table(RayCluster.model_json_schema(), definitions),
    ]
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """Return the page of the worker's settings."""
    prefix = RayWorkerSettings.model_config.get("env_prefix", "")
    rows: list[str] = []
    for name, field in RayWorkerSettings.model_fields.items():
        default = _shown(field.get_default(call_default_factory=True))
        rows.append(f"| `{prefix}{name.upper()}` | {default} | {_cell(field.description or '')} |")
    parts = [
        "# Settings of the worker",
        _generated("the settings"),
        "Set these as environment variables of the worker's process, or in `prefect.toml` "
        "under `[integrations.ray.worker]`. For a single run, set a "
        "[job variable](job-variables.md).",
        "\n".join(["| variable | default | what |", "|---|---|---|", *rows]),
        "## What travels to a job",
        "The worker sends these of its Prefect settings to a job, if they are set, and no others. "
        "If the job sets one of them in `env` or `runtime_env.env_vars`, under any of its names, "
        "the job's value wins; `null` in `env` removes the setting. "
        "[Credentials](../how-to/credentials.md) explains how secrets reach a job.",
        "\n".join(
            ["| setting | why |", "|---|---|", *(f"| `{k}` | {v} |" for k, v in TRAVELS.items())]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def diagnosis() -> str:
    """Return the page of the categories of failures."""
    rows = [f"| `{c.label}` | {_cell(c.meaning)} | {_cell(c.advice)} |" for c in Category]
    parts = [
        "# Diagnosis",
        _generated("prefect_ray_worker/shared/category.py"),
        "Look up why a run crashed, and what to do. The message of a Crashed run begins with one "
        "of these names and a colon. The names are stable: a release that renames one says so in "
        "the changelog. New failures bring new names, so match `RuntimeEnv*` rather than a list. "
        "[Debug a run](../how-to/debug-a-run.md) shows how to read a message, and an automation.",
        "\n".join(["| category | what happened | what to do |", "|---|---|---|", *rows]),
    ]
    return "\n\n".join(parts) + "\n"


def events() -> str:
    """Return the page of the events of jobs and clusters."""
    names = [f"| `{h.event}` | {h.meaning} | {h.occurred} |" for h in Happening]
    labels = [f"| `{label.label}` | {_cell(label.meaning)} |" for label in Label]
    clusters = [f"| `{h.event}` | {h.meaning} |" for h in ClusterHappening]
    cluster_labels = [f"| `{label.label}` | {_cell(label.meaning)} |" for label in ClusterLabel]
    parts = [
        "# Events",
        _generated("prefect_ray_worker/prefect_api/events.py and cluster_events.py"),
        "React to what happens to a job, or to a cluster that the worker creates, with automations "
        "or in the event feed. The worker sends "
        "an event when it notices the change, through Prefect's own sender, in the background. It "
        "sends each event once, even after a restart. If the API is down for long, some events are "
        "lost, so use them only where a lost event does no harm. "
        "[Debug a run](../how-to/debug-a-run.md) has an automation.",
        "## Jobs",
        "\n".join(["| event | meaning | time of the event |", "|---|---|---|", *names]),
        "The events that end a job come after its run is settled, so an automation finds the run "
        "in its final state. A job that starts and ends between two polls has no `running`.",
        "### Labels of the resource",
        "The resource is `prefect.ray.job.<submission id>`. Its name is the job variable `name`, "
        "else the flow run's name. Labels whose value is unknown are left out.",
        "\n".join(["| label | meaning |", "|---|---|", *labels]),
        "### Related resources",
        "They are the same as for Prefect's own workers, in the same roles: `flow-run`, `flow`, "
        "`deployment`, `work-pool`, `worker` and `tag`.",
        "### Payload",
        "An event that ends a job has the message of the run's state as `message`.",
        "### Ids",
        "An event's id derives from the submission id and the event's name. `follows` names the "
        "previous event, unless that is more than 5 minutes older: Prefect would delay the event.",
        "## Clusters",
        "The worker sends these events for clusters that it creates, with the job variable "
        "`kuberay` or `cluster_source`.",
        "\n".join(["| event | meaning |", "|---|---|", *clusters]),
        "The resource is `prefect.ray.cluster.<uid>`, with the uid of the RayCluster. Before the "
        "cluster exists (`requested`, and `failed` if it cannot be created), the resource has an "
        "id derived from the cluster's name. To get all events of a cluster, match the label "
        "`prefect.ray.cluster`.",
        "\n".join(["| label | meaning |", "|---|---|", *cluster_labels]),
        "The related resources are the work pool, the worker, and the flow run that the cluster is "
        "for; up to `ready` also its flow, deployment and tags. The payload of `failed`, "
        "`deleting` and `stuck` has the reason as `message`. Ids derive from the resource and the "
        "event's name; for `joined` also from the job.",
        "The time of an event is when the worker noticed the change. If every worker ends while a "
        "cluster is being deleted, its `gone` is never sent.",
    ]
    return "\n\n".join(parts) + "\n"


def metrics() -> str:
    """Return the page of the worker's metrics."""
    rows: list[str] = []
    for metric in ALL:
        (described,) = metric.describe()
        suffix = "_total" if described.type == "counter" else ""
        labels = ", ".join(f"`{name}`" for name in metric._labelnames)  # noqa: SLF001
        rows.append(
            f"| `{described.name}{suffix}` | {described.type} | {labels} | "
            f"{_cell(described.documentation)} |"
        )
    parts = [
        "# Metrics",
        _generated("prefect_ray_worker/metrics.py"),
        "Collect these with Prometheus: set `PREFECT_CLIENT_METRICS_ENABLED=true` for the worker. "
        "Prefect then serves them, with its own client metrics, at "
        "`http://<worker>:4201/metrics`; `PREFECT_CLIENT_METRICS_PORT` changes the port. They "
        "describe one process and begin at 0 when it starts.",
        "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows]),
        "Alert on `prefect_ray_poll_age_seconds` above a minute (a cluster does not answer) and on "
        "an unusual rate of `prefect_ray_crashes_total` or `prefect_ray_clusters_failed_total`. "
        "For a single job or cluster use [events](events.md).",
    ]
    return "\n\n".join(parts) + "\n"


def cli() -> str:
    """Return the page of the command line."""
    subjects, of_kuberay, of_source = (
        [f"| `{subject.label}` | {_cell(subject.meaning)} |" for subject in kind]
        for kind in (CheckSubject, KubeRaySubject, SourceSubject)
    )
    grades = [f"| `{grade.label}` | {_cell(grade.meaning)} |" for grade in Grade]
    parts = [
        "# Command line",
        _generated("prefect_ray_worker/commands"),
        "Call `prefect-ray-worker` or `python -m prefect_ray_worker`. To start a worker, call "
        "`prefect worker start --pool <pool> --type ray`.",
        *(_command(name) for name in ("doctor", "status", "logs", "sweep")),
        "### Checks",
        "The doctor runs these checks in this order. It skips a check if an earlier check that it "
        "needs has failed.",
        "\n".join(["| subject | question |", "|---|---|", *subjects]),
        "For a pool with the job variable `kuberay`, only these checks follow `target`, because "
        "its clusters are created for runs.",
        "\n".join(["| subject | question |", "|---|---|", *of_kuberay]),
        "For a pool with `cluster_source`, only these checks follow `target`:",
        "\n".join(["| subject | question |", "|---|---|", *of_source]),
        "### Outcomes",
        "\n".join(["| grade | meaning |", "|---|---|", *grades]),
        "### `--json`",
        "The output is an object with `ok` (true if no check failed) and `checks`, each with "
        "`subject`, `grade`, `says` and `advice`. The names are stable; a release can add "
        "subjects.",
    ]
    return "\n\n".join(parts) + "\n"


def _command(name: str) -> str:
    """Return the section of a command, from the parameters and the docstring of its function."""
    commands = app()
    command = commands[name]
    arguments = command.assemble_argument_collection(
        default_parameter=commands.default_parameter, parse_docstring=True
    )
    rows: list[str] = []
    for argument in arguments:
        parameter = argument.parameter
        default = argument.field_info.default
        shown = "" if default in (None, False) or argument.required else f" Default: `{default}`."
        names = ", ".join(f"`{word}`" for word in argument.names)
        rows.append(
            f"| {_cell(names)} | {_cell(' '.join((parameter.help or '').split()))}{shown} |"
        )
    prose, _, _ = inspect.cleandoc(command.default_command.__doc__ or "").partition("\nArgs:\n")
    return "\n\n".join(
        [
            f"## `prefect-ray-worker {name}`",
            prose.strip(),
            "\n".join(["| argument | meaning |", "|---|---|", *rows]),
        ]
    )


def compatibility() -> str:
    """Return the page of the versions that were tried."""
    sys.path.insert(0, str(HERE.parents[1]))  # `tests` is beside `docs`
    from tests.compat.cells import CELLS, measured

    results = measured()
    rows = [
        f"| {cell.python} | {cell.ray} | {cell.prefect} | "
        f"{_cell(results[cell.name].verdict) if cell.name in results else 'not tested yet'} |"
        for cell in CELLS
    ]
    declared = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [d for d in declared["dependencies"] if d.startswith(("prefect", "ray"))]
    parts = [
        "# Versions",
        _generated("tests/compat/measured.json"),
        "See which versions were tested together. The package requires Python "
        f"{declared['requires-python']}, "
        f"{' and '.join(f'`{dependency}`' for dependency in wanted)} where the worker runs. The "
        "cluster's Ray can differ.",
        "For each line, `make compat` installs the built wheel in a fresh environment, starts that "
        "Ray and a server of that Prefect, and runs the core of the end-to-end tests: deployments, "
        "cancelling, sending the driver, `RayTaskRunner`, and for the newest Ray also the answers "
        "of its Jobs API.",
        "\n".join(["| Python | Ray | Prefect | end-to-end tests |", "|---|---|---|---|", *rows]),
        "The whole suite runs with the versions in `constraints.txt`.",
    ]
    return "\n\n".join(parts) + "\n"


def notebook() -> str:
    """Return the tutorial's notebook as a page, with the outputs of its execution."""
    parts: list[str] = []
    for cell in json.loads(TOUR.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # The links of the notebook begin in its own folder.
            parts.append(text.replace("](../../tutorial/", "](").replace("](../../", "](../"))
            continue
        parts.append(f"```python\n{text}\n```")
        if shown := "".join(_output(output) for output in cell["outputs"]).strip("\n"):
            parts.append(f"```text\n{shown}\n```")
    title, _, rest = parts[0].partition("\n\n")
    page = [title, _generated("docs/examples/notebook/tour.ipynb"), rest, *parts[1:]]
    return "\n\n".join(page) + "\n"


def _output(output: dict[str, Any]) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return "".join(text).rstrip("\n") + "\n"


def messages() -> str:
    """Return the page of what a user can be told."""
    sys.path.insert(0, str(HERE))  # beside this file, which tests load by its path
    from messages import page

    return page()


PAGES = {
    "../tutorial/from-a-notebook.md": notebook,
    "cli.md": cli,
    "compatibility.md": compatibility,
    "diagnosis.md": diagnosis,
    "events.md": events,
    "job-variables.md": job_variables,
    "messages.md": messages,
    "metrics.md": metrics,
    "settings.md": settings,
}


def _generated(source: str) -> str:
    """Return a comment that readers of the site do not see."""
    return f"<!-- Generated by `make docs` from {source}; do not edit. -->"


def _variable(name: str, field: Schema, definitions: Schema) -> str:
    default = "" if field.get("default") is None else f", default `{field['default']}`"
    title = field.get("title") or definitions[field["$ref"].rpartition("/")[2]]["title"]
    return (
        f"## `{name}`\n\n{title}: {_type(field, definitions)}{default}.\n\n{field['description']}"
    )


def _table(definition: Schema, definitions: Schema) -> str:
    required = definition.get("required", [])
    rows = [
        f"| `{name}`{' (required)' if name in required else ''} | {_type(field, definitions)} | "
        f"{_cell(field['description'])} |"
        for name, field in definition["properties"].items()
    ]
    return "\n".join(["| field | type | what |", "|---|---|---|", *rows])


def _type(field: Schema, definitions: Schema) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        kind = "block" if "block_type_slug" in definitions[name] else "mapping"
        return f"{kind} `{name}`" if kind == "block" else kind
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(o, definitions) for o in field["anyOf"] if o != {"type": "null"})
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field.get('items', {}), definitions)}"
    if kind == "object":
        return "mapping"
    bound = f" ≥ {field['minimum']:g}" if "minimum" in field else ""
    return f"{kind}{bound}"


def _shown(value: object) -> str:
    return "unset" if value is None else f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    stale = [name for name, page in PAGES.items() if _read(HERE / name) != page()]
    if "--check" in sys.argv:
        if stale:
            print(f"Stale: {', '.join(stale)} in docs/reference. Run `make docs`.")
        return len(stale)
    for name in stale:
        (HERE / name).write_text(PAGES[name]())
        print(f"wrote docs/reference/{name}")
    return 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
