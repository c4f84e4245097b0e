"""What the findings of a probe mean, and how a report is written: pure."""

import json
from typing import Any

import httpx
import pytest

from prefect_ray_worker._version import __version__
from prefect_ray_worker.doctor import probe, report
from prefect_ray_worker.doctor.inside import checks_of, compare_clocks
from prefect_ray_worker.doctor.probe_job import Findings, ProbeRun, read_findings
from prefect_ray_worker.doctor.report import CheckSubject, Grade, failed, ok, skipped, warning
from prefect_ray_worker.doctor.work_pool import default_template
from prefect_ray_worker.errors import RayWorkerError
from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.worker import RayWorker

NOON = 1_700_000_000.0
WELL: dict[str, Any] = {
    "python": {"version": "3.11.7", "executable": "/bin/python", "host": "n", "time": NOON + 2},
    "driver": {"version": __version__},
    "prefect": {"version": "3.8.8"},
    "api": {"url": "http://prefect:4200/api", "time": NOON, "knows_pool": None},
    "ray": {"version": "2.60.0", "nodes": 2, "on_head": False},
    "other_node": {"host": "m", "python": "3.11.7", "prefect": "3.8.8"},
}


def found(**changed: Any) -> dict[CheckSubject, Any]:
    findings = Findings.model_validate({**WELL, **changed})
    return {check.subject: check for check in checks_of(findings, ships=True)}


def test_healthy_findings_are_all_well() -> None:
    assert {check.grade for check in found().values()} == {Grade.OK}


@pytest.mark.parametrize(
    ("ray", "image"),
    [({"version": "2.52.1"}, "ray:2.52.1-py311"), ({"error": "boom"}, "ray:VERSION-py311")],
)
def test_old_python_of_the_nodes_names_the_image_to_take(ray: dict[str, str], image: str) -> None:
    check = found(python={"version": "3.10.19"}, ray=ray)[CheckSubject.PYTHON_VERSION]
    assert check.grade is Grade.FAILED
    assert image in check.advice


@pytest.mark.parametrize(
    ("changed", "subject", "grade", "says"),
    [
        (
            {"python": {"version": "3.9.18"}},
            CheckSubject.PYTHON_VERSION,
            Grade.FAILED,
            "needs 3.11",
        ),
        ({"python": {"version": "3.14.0"}}, CheckSubject.PYTHON_VERSION, Grade.OK, "pickle"),
        (
            {"prefect": {"version": "3.7.9"}},
            CheckSubject.PREFECT_VERSION,
            Grade.FAILED,
            "needs 3.8",
        ),
        ({"prefect": {"version": "3.99.0"}}, CheckSubject.PREFECT_VERSION, Grade.WARNING, "3.99.0"),
        ({"prefect": {"error": "ImportError: x"}}, CheckSubject.PREFECT_VERSION, Grade.FAILED, "x"),
        ({"driver": {"version": "0.0.1"}}, CheckSubject.DRIVER_IMPORT, Grade.WARNING, "0.0.1"),
        ({"driver": {"error": "boom"}}, CheckSubject.DRIVER_IMPORT, Grade.FAILED, "sent along"),
        ({"api": {"url": None}}, CheckSubject.PREFECT_API, Grade.FAILED, "no PREFECT_API_URL"),
        (
            {"api": {"error": "HTTPStatusError: 401", "status": 401}},
            CheckSubject.PREFECT_CREDENTIALS,
            Grade.FAILED,
            "HTTP 401",
        ),
        (
            {"api": {"url": "http://prefect/api", "knows_pool": False}},
            CheckSubject.PREFECT_API,
            Grade.FAILED,
            "different Prefect",
        ),
        ({"ray": {"error": "Version mismatch"}}, CheckSubject.RAY_IN_JOB, Grade.FAILED, "mismatch"),
        (
            {"other_node": {"error": "GetTimeoutError"}},
            CheckSubject.OTHER_NODE,
            Grade.FAILED,
            "Timeout",
        ),
        (
            {"other_node": {"host": "m", "python": "3.11.7", "prefect": "3.8.1"}},
            CheckSubject.OTHER_NODE,
            Grade.WARNING,
            "the driver has Prefect 3.8.8",
        ),
        ({"other_node": {"host": None}}, CheckSubject.OTHER_NODE, Grade.SKIPPED, "one node"),
        ({"other_node": None}, CheckSubject.OTHER_NODE, Grade.SKIPPED, "had not ended in time"),
    ],
)
def test_finding_is_graded(
    changed: dict[str, Any], subject: CheckSubject, grade: Grade, says: str
) -> None:
    check = found(**changed)[subject]
    assert check.grade is grade, check
    assert says in check.says


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_prefect_api_that_is_busy_or_away_is_still_one(status: int) -> None:
    """The doctor said that it is not a Prefect API, and to set another address."""
    said = {"error": f"PrefectHTTPStatusError: '{status} No' for url 'x'", "status": status}
    checks = found(api=said)
    assert checks[CheckSubject.PREFECT_API].grade is Grade.WARNING
    assert f"busy or away now (HTTP {status})" in checks[CheckSubject.PREFECT_API].says
    assert checks[CheckSubject.PREFECT_CREDENTIALS].grade is Grade.SKIPPED


def test_other_node_has_as_long_as_the_doctor_waits() -> None:
    """It had 20 s, also to set up the runtime environment, whatever `--wait` said."""
    assert probe.task_seconds(1) == probe.TASK_SECONDS
    assert 80_000 < probe.task_seconds(100_000) < 100_000
    check = found(other_node={"error": "GetTimeoutError: Get timed out"})[CheckSubject.OTHER_NODE]
    assert "still sets up its runtime environment, allow more time with --wait" in check.advice


def test_credentials_in_an_api_url_are_not_shown() -> None:
    checks = found(api={"url": "http://user:secret@prefect:4200/api"})
    assert "secret" not in str(checks[CheckSubject.PREFECT_API])


def test_findings_survive_the_lines_around_them() -> None:
    said = f'{probe.MARK} {{"prefect": {{"version": "3.8.8"}}}}'
    output = f'progress 50 %\n{said}\n{probe.MARK} {{"ray": {{"ver\nMARK = "{probe.MARK}"'
    findings = read_findings(output)
    assert findings.prefect is not None
    assert findings.prefect.version == "3.8.8"
    assert findings.ray is None


def probed(start_time: float) -> ProbeRun:
    job = JobDetails(status="SUCCEEDED", start_time=int(start_time * 1000))
    check = ok(CheckSubject.PROBE_JOB, "")
    return ProbeRun(check, job, began=NOON, submitted=NOON + 1, ended=NOON + 4)


@pytest.mark.parametrize(
    ("start_time", "changed", "whose"),
    [
        (NOON + 61, {}, "At least 60 s lie between the head's clock"),
        (NOON + 1, {"python": {"time": NOON - 90}}, "At least 90 s lie between the clock of the"),
        (
            NOON + 1,
            {"api": {"url": "x", "date": "Tue, 14 Nov 2023 22:13:20 GMT", "time": NOON + 31}},
            "At least 30 s lie between the clocks of the driver's node and the Prefect server",
        ),
    ],
)
def test_clock_that_is_off_is_named(start_time: float, changed: Any, whose: str) -> None:
    check = compare_clocks(probed(start_time), Findings.model_validate({**WELL, **changed}))
    assert check.grade is Grade.WARNING
    assert check.says.startswith(whose)


def test_clocks_that_agree() -> None:
    check = compare_clocks(probed(NOON + 1), Findings.model_validate(WELL))
    assert check.grade is Grade.OK


def test_report_has_a_line_for_each_check_and_the_same_as_json() -> None:
    checks = [
        ok(CheckSubject.DASHBOARD, "It answers."),
        failed(CheckSubject.TLS, "No.\nReally", "Do it."),
    ]
    lines = [report.line_of(check) for check in checks]
    assert lines == ["ok      dashboard: It answers.", "failed  tls: No. Really. Do it."]
    assert report.summary_of(checks).startswith("1 ok, 1 failed, ")
    document = json.loads(report.json_of(checks))
    assert document["ok"] is False
    assert document["checks"][1] == {
        "subject": "tls", "grade": "failed", "says": "No. Really", "advice": "Do it.",
    }  # fmt: skip


def test_skipped_and_warned_is_not_failed() -> None:
    well = [
        ok(CheckSubject.DASHBOARD, "It answers."),
        skipped(CheckSubject.TLS, "Not asked."),
        warning(CheckSubject.CLOCKS, "They differ.", "Set them."),
    ]
    assert report.is_well(well)
    assert not report.is_well([*well, failed(CheckSubject.TLS, "No.")])


def test_template_without_a_pool_is_that_of_a_new_pool() -> None:
    offered = RayWorker.get_default_base_job_template()
    ours = default_template()
    assert ours["job_configuration"] == offered["job_configuration"]
    assert ours["variables"]["properties"] == offered["variables"]["properties"]


def test_the_probe_prints_no_credentials_of_a_url() -> None:
    """`PREFECT_API_URL` with a user and a password stood in the job's log and in `--json`."""
    found = probe.trouble(ValueError("401 for url 'http://user:secret@prefect:4200/api/flows'"))
    assert found["error"] == "ValueError: 401 for url 'http://***@prefect:4200/api/flows'"
    assert probe.masked("http://user:se/cret@prefect/api") == "http://***@prefect/api"


def test_a_key_with_a_line_end_is_named_and_not_shown() -> None:
    said = probe.trouble(httpx.LocalProtocolError("Illegal header value b'Bearer secret\\n'"))
    check = found(api=said)[CheckSubject.PREFECT_API]
    assert check.grade is Grade.FAILED
    assert "PREFECT_API_KEY" in check.says
    assert "line end" in check.advice
    assert "secret" not in f"{said} {check}"


@pytest.mark.parametrize(
    ("text", "says", "advice"),
    [
        ("No answer (x. Y). Check it. Twice.", "No answer (x. Y).", "Check it. Twice."),
        ("It is 2.60.0 there. Update it.", "It is 2.60.0 there.", "Update it."),
        ("Nothing to do", "Nothing to do", ""),
        ("It fails. `ray stop` helps.", "It fails.", "`ray stop` helps."),
    ],
)
def test_message_of_an_error_is_split_into_finding_and_advice(
    text: str, says: str, advice: str
) -> None:
    check = failed(CheckSubject.DASHBOARD, RayWorkerError(text))
    assert (check.says, check.advice) == (says, advice)
