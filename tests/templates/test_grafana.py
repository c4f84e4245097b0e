"""The dashboard and the alerts: every metric and label in them is one of the worker's.

No Grafana is started here.
"""

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from prefect_ray_worker.metrics import ALL
from tests.templates.folders import ROOT, TEMPLATES

FOLDER = TEMPLATES / "grafana"
# Schemas of Grafana's own SDK (grafana/grafana-foundation-sdk at f178d5a, jsonschema/), beside the
# checkout where this project is developed, if they are there.
SCHEMAS = ROOT.parent / "shared" / "data" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}
# What Prometheus itself adds to every series.
_SCRAPED = {"job", "instance"}


def series() -> dict[str, set[str]]:
    """Return the labels of each series that the worker exports."""
    found: dict[str, set[str]] = {}
    for metric in ALL:
        (described,) = metric.describe()
        for suffix in _SUFFIXES[described.type]:
            labels = {*metric._labelnames, *_SCRAPED}
            found[described.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def complaints(expression: str) -> list[str]:
    """Return the metrics and labels of a PromQL expression that do not exist."""
    known = series()
    names = set(re.findall(r"\bprefect_ray_\w+", expression))
    unknown = [name for name in sorted(names) if name not in known]
    selected = re.findall(r"(prefect_ray_\w+)\{([^}]*)\}", expression)
    for name, selector in selected:
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        unknown += sorted(f"{name}{{{label}}}" for label in used - known.get(name, used))
    grouped = re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", expression)
    everywhere = set.intersection(*(known.get(name, set()) for name in names)) if names else set()
    by = {label.strip() for group in grouped for label in group.split(",")}
    return (
        unknown + sorted(f"by ({label})" for label in by - everywhere) + ["no metric"] * (not names)
    )


def expressions() -> list[Any]:
    found = [(p["title"], target["expr"]) for p in PANELS for target in p["targets"]]
    found += [(rule["alert"], rule["expr"]) for rule in RULES]
    guide = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    found += [("monitor.md", expr) for expr in re.findall(r"^\s*expr: (.+)$", guide, re.MULTILINE)]
    return [pytest.param(expr, id=title) for title, expr in found]


@pytest.mark.parametrize("expression", expressions())
def test_expression_uses_metrics_and_labels_that_exist(expression: str) -> None:
    assert complaints(expression) == []


@pytest.mark.parametrize(
    "expression",
    [
        "max by (cluster) (prefect_ray_poll_age_seconds)",
        "rate(prefect_ray_submissions[5m])",
        'prefect_ray_crashes_total{kind="any"}',
        "up",
    ],
)
def test_mistake_in_an_expression_is_found(expression: str) -> None:
    assert complaints(expression)


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"Grafana's schemas are not in {SCHEMAS}")
def test_dashboard_is_as_grafana_loads_it() -> None:
    dashboard, query = (
        json.loads((SCHEMAS / f"{name}.jsonschema.json").read_text())
        for name in ("dashboard", "prometheus")
    )
    jsonschema.Draft7Validator(dashboard).validate(DASHBOARD)
    for panel in PANELS:
        for target in panel["targets"]:
            jsonschema.Draft7Validator(query).validate(target)
    with pytest.raises(jsonschema.ValidationError, match="pannels"):
        jsonschema.Draft7Validator(dashboard).validate({**DASHBOARD, "pannels": []})


def test_dashboard_has_what_grafana_needs_to_load_it() -> None:
    """The names are those of Grafana's dashboard JSON, version 39 of its schema."""
    assert DASHBOARD["schemaVersion"] == 39
    assert {"uid", "title", "time", "annotations", "templating"} <= DASHBOARD.keys()
    source, job = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == (
        "datasource", "datasource", "prometheus",
    )  # fmt: skip
    assert job["query"] == "label_values(prefect_ray_submissions_total, job)"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["type"] in ("stat", "timeseries")
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == job["datasource"] == chosen
            assert 'job=~"$job"' in target["expr"]


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_legend_shows_labels_by_which_the_series_are_grouped(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = re.search(r"by \(([^)]*)\)", target["expr"])
        by = {label.strip() for label in grouped[1].split(",")} if grouped else set()
        assert shown == by - {"le"}


def test_every_metric_is_on_the_dashboard_but_the_count_of_bytes() -> None:
    text = json.dumps(DASHBOARD)
    absent = [m.describe()[0].name for m in ALL if m.describe()[0].name not in text]
    assert absent == ["prefect_ray_log_bytes"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_says_what_and_names_only_labels_that_it_has(rule: dict[str, Any]) -> None:
    texts = " ".join(rule["annotations"].values())
    assert rule["annotations"].keys() == {"summary", "description"}
    for label in re.findall(r"\$labels\.(\w+)", texts):
        assert f"by ({label})" in rule["expr"]
