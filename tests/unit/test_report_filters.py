"""The texts that a person reads."""

from typing import Any

import pytest

from plugins.filter.cfn_report import ADVICE, next_step, preflight_report, status_table

CLOCK = {"controller_time_s": 99.5, "host_time_s": 99.8}


def test_preflight_reports_every_problem_of_every_host() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "a": {"preflight_result": {"problems": [], **CLOCK}},
        "b": {"preflight_result": {"problems": ["x: found 1", "y: found 2"], **CLOCK}},
        "c": {"preflight_result": {"unreachable": True, "msg": "no\n route"}},
        "d": {"preflight_result": {"failed": True, "msg": "crashed"}},
        "e": {},
    }
    lines = preflight_report(hostvars, hostvars, "stage1", 100.0, 2.0).splitlines()
    assert "Nothing was changed" in lines[0]
    assert lines[1:] == [
        "b: x: found 1",
        "b: y: found 2",
        "c: unreachable: no route",
        "d: the checks did not run: crashed",
        "e: the checks did not run: no result",
    ]
    assert preflight_report(["a"], hostvars, "stage1", 100.0, 2.0) == ""


@pytest.mark.parametrize(
    ("asked_s", "host_s", "now_s", "found"),
    [
        (100.0, 100.5, 101.0, ""),
        (100.0, 130.0, 160.0, ""),  # a slow way, or a busy host
        (100.0, 98.1, 101.0, ""),
        (100.0, 102.9, 101.0, ""),
        (100.0, 97.9, 101.0, "at least 2.1 s"),
        (100.0, 103.1, 101.0, "at least 2.1 s"),
        (100.0, 175.0, 101.0, "at least 74 s"),
    ],
)
def test_a_clock_is_wrong_if_no_delay_explains_it(
    asked_s: float, host_s: float, now_s: float, found: str
) -> None:
    result = {"problems": [], "controller_time_s": asked_s, "host_time_s": host_s}
    report = preflight_report(["a"], {"a": {"preflight_result": result}}, "stage1", now_s, 2.0)
    assert (found in report, "clock_skew_s" in report) == (True, bool(found))


STATUS = {
    "release": "r1",
    "topology": "flat",
    "max_agents": 100,
    "version": "v2",
    "traffic_pct": 10,
    "observed_share_pct": 9.5,
    "since": "2026-01-31T10:00:00.000Z",
    "engine": "running",
}


def verdict(word: str) -> dict[str, Any]:
    return {
        "kind": "verdict",
        "stage": "stage1",
        "time": "2026-01-31T11:00:00.000Z",
        "sequence": 7,
        "data": {"verdict": {"verdict": word}},
    }


def test_the_table_shows_every_host_the_last_verdict_and_what_to_type() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "a": {"status_result": {"installed": True, "status": STATUS}},
        "b": {"status_result": {"unreachable": True}},
        "c": {"status_result": {"installed": False}},
        "d": {"status_result": {"installed": True, "status": {**STATUS, "engine": "not running: gone"}}},
    }
    text = status_table(hostvars, hostvars, {"records": [verdict("FAIL")]})
    rows = text.splitlines()
    assert rows[0].split()[:3] == ["host", "release", "topology"]
    assert "9.5 %" in rows[1]
    assert "unreachable" in rows[2]
    assert "not installed" in rows[3]
    assert "NOT RUNNING" in rows[4]
    assert "last verdict: FAIL" in text
    assert "rollback_stage1.yml" in text


@pytest.mark.parametrize("word", sorted(ADVICE))
def test_each_verdict_has_its_next_step(word: str) -> None:
    assert next_step({"v2"}, [verdict(word)]) == ADVICE[word].format(stage="stage1")


def test_the_next_step_without_a_verdict() -> None:
    flipped = {"kind": "flipped", "stage": "stage1"}
    assert next_step({"v1"}, [verdict("PASS")]) == "ansible-playbook stage1.yml -e traffic=10"
    assert next_step({"v2"}, [verdict("PASS"), flipped]) == "ansible-playbook gate.yml -e stage=stage1"
    assert next_step({"v2"}, []) == "ansible-playbook gate.yml"


def test_after_v1s_end_its_way_back_is_named_and_after_that_the_ladder_begins_anew() -> None:
    ended = {"kind": "decommissioned", "stage": "decommission"}
    restored = {"kind": "restored", "stage": "decommission"}
    assert "restore_v1.yml brings it back" in next_step({"v2"}, [verdict("PASS"), ended])
    assert next_step({"v1"}, [ended, restored]) == "ansible-playbook stage1.yml -e traffic=10"
