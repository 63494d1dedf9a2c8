"""Preflight: each check on its own, and all of them in one run."""

import time
from typing import Any

import pytest
from ansible.module_utils.preflight_checks import gather, judge

from tests.conftest import RunModule

NEEDS = {
    "shm_mb": 256,
    "nofile": 4096,
    "memory_mb": 1024,
    "memory_level": "advice",
    "cores": 2,
    "bash_major": 4,
    "systemd_version": "252",
    "python_version": "3.11",
    "opt_free_mb": 100,
    "log_free_mb": 100,
    "environment": "lab",
}

FIT: dict[str, Any] = {
    "shm_total_mb": 256,
    "shm_free_mb": 200,
    "shm_folder": "fit",
    "nofile": 4096,
    "memory_total_mb": 1024,
    "cores": 2,
    "bash_version": "5.2.15",
    "systemd_version": "252",
    "python_version": "3.11.2",
    "machine": "x86_64",
    "programs_missing": [],
    "opt_free_mb": 5000,
    "log_free_mb": 5000,
    "environment": "lab",
}


def test_a_fit_host_has_no_problem_and_every_fact_is_judged() -> None:
    findings = judge(FIT, NEEDS)
    assert [finding for finding in findings if not finding.ok] == []
    assert {finding.check for finding in findings} == set(FIT)


@pytest.mark.parametrize(
    ("fact", "value", "found", "required"),
    [
        ("shm_total_mb", 64, "64 MB", "at least 256 MB"),
        ("nofile", 1024, "1024 files", "at least 4096 files"),
        ("bash_version", "3.2.57", "3.2.57", "at least 4.0"),
        ("bash_version", None, "not found", "at least 4.0"),
        ("systemd_version", "249", "249", "at least 252"),
        ("python_version", "3.9.18", "3.9.18", "3.11, which the artifact was built for"),
        ("machine", "aarch64", "aarch64", "x86_64"),
        ("programs_missing", ["socat"], "socat", "none"),
        ("shm_folder", "owned by user id 1000, not by cfn", "owned by user id 1000, not by cfn", "fit"),
        ("shm_free_mb", None, "nothing readable", "at least 128 MB"),
        ("opt_free_mb", 12, "12 MB", "at least 100 MB"),
    ],
)
def test_each_requirement_stops_a_rollout(fact: str, value: object, found: str, required: str) -> None:
    (bad,) = [finding for finding in judge({**FIT, fact: value}, NEEDS) if not finding.ok]
    assert (bad.check, bad.found, bad.required, bad.level) == (fact, found, required, "required")
    assert bad.remedy


def test_a_host_of_another_environment_is_refused_by_name() -> None:
    needs = {**NEEDS, "environment": "production"}
    (bad,) = [each for each in judge({**FIT, "environment": "staging"}, needs) if not each.ok]
    assert (bad.check, bad.found, bad.required, bad.level) == (
        "environment",
        "staging",
        "production",
        "required",
    )
    for environment in ("production", ""):  # its own, or nothing deployed yet
        assert all(each.ok for each in judge({**FIT, "environment": environment}, needs))


@pytest.mark.parametrize("fact", ["cores", "memory_total_mb"])
def test_advice_does_not_stop_a_rollout(fact: str) -> None:
    (bad,) = [finding for finding in judge({**FIT, fact: 1}, NEEDS) if not finding.ok]
    assert bad.level == "advice"


def test_memory_is_required_where_the_stage_says_so() -> None:
    needs = {**NEEDS, "memory_level": "required"}
    (bad,) = [finding for finding in judge({**FIT, "memory_total_mb": 512}, needs) if not finding.ok]
    assert (bad.found, bad.required, bad.level) == ("512 MB", "at least 1024 MB", "required")


def test_the_module_reports_all_problems_of_a_host_at_once(run_module: RunModule) -> None:
    needs = {**NEEDS, "shm_mb": 10**9, "nofile": 10**12}
    result = run_module("cfn_preflight", check_mode=True, needs=needs, controller_time_s=time.time())
    named = {problem.split(":")[0] for problem in result["problems"]}
    assert {"shm_total_mb", "nofile"} <= named
    assert not result["changed"]


def test_missing_needs_are_named(run_module: RunModule) -> None:
    result = run_module("cfn_preflight", needs={}, controller_time_s=time.time())
    assert result["failed"]
    assert "shm_mb" in result["msg"]


def test_gather_reads_this_host() -> None:
    facts = gather()
    assert set(facts) == set(FIT)
    assert facts["memory_total_mb"] > 0
