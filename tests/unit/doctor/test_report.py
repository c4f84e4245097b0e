"""How checks are written: what a cluster answers never looks like a line of the doctor's."""

import json

from prefect_ray_worker.doctor import report
from prefect_ray_worker.doctor.report import CheckSubject, failed, ok

FORGED = "2.60\n\x1b[2K\x1b[32mok     \x1b[0m prefect-api: all is well\u202e"


def test_answer_of_a_cluster_cannot_fake_a_line() -> None:
    for check in (ok(CheckSubject.RAY_VERSION, FORGED), failed(CheckSubject.RAY_VERSION, FORGED)):
        line = report.line_of(check)
        assert "\n" not in line
        assert "\x1b" not in line
        assert "\u202e" not in line
        assert line.split()[:2] == [check.grade.label, "ray-version:"]
        assert "\x1b" not in report.json_of([check])
        assert json.loads(report.json_of([check]))["checks"][0]["subject"] == "ray-version"


def test_a_finding_that_ends_with_a_quotation_does_not_run_into_the_advice() -> None:
    check = failed(CheckSubject.DASHBOARD, "It answered: '0.8.4'", "Name the port.")
    assert str(check) == "It answered: '0.8.4'. Name the port."
