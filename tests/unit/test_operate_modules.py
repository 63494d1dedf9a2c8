"""The modules that operate on running hosts: one call of the deployed command, and what a playbook sees."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunModule
from tests.unit.conftest import answer, words

UP = {"id": 3, "state": "up", "pid": 7, "agents": 44, "failovers": 0}
DRAINING = UP | {"state": "draining"}


def acted(**changes: Any) -> dict[str, Any]:
    value = {
        "coordinator": 3, "action": "drain", "changed": True, "before": [UP], "after": [DRAINING],
        "served_s": 0.4, "back_s": None, "within_s": 30, "held": True,
    }  # fmt: skip
    return value | changes


@pytest.mark.parametrize(
    ("state", "action"),
    [("drained", "drain"), ("failed_over", "failover"), ("restarted", "restart"), ("returned", "return")],
)
def test_a_state_becomes_an_action(command: Path, run_module: RunModule, state: str, action: str) -> None:
    answer(command, acted(action=action))
    result = run_module("cfn_coordinator", state=state, id=3, agents=28, within_s=12)
    assert words(command) == f"coordinators {action} 3 --json --within-s 12.0 --agents 28"
    assert (result["changed"], result["served_s"]) == (True, 0.4)
    assert result["diff"] == {"before": "coordinator 3: up\n", "after": "coordinator 3: draining\n"}


def test_an_act_that_leaves_it_up_still_shows(command: Path, run_module: RunModule) -> None:
    answer(command, acted(action="restart", after=[UP]))
    result = run_module("cfn_coordinator", state="restarted", id=3)
    assert result["diff"]["after"].endswith("restart of coordinator 3\n")


def test_check_mode_asks_for_a_prediction(command: Path, run_module: RunModule) -> None:
    answer(command, acted(served_s=None))
    run_module("cfn_coordinator", check_mode=True, state="drained", id=3)
    assert words(command).endswith("--check")


def test_a_failover_that_took_too_long_fails_and_says_so(command: Path, run_module: RunModule) -> None:
    answer(command, acted(action="failover", served_s=31.2, held=False), code=1)
    result = run_module("cfn_coordinator", state="failed_over", id=3)
    assert result["failed"]
    assert "after 31.2 s, allowed 30 s" in result["msg"]


def test_a_command_that_fails_without_an_answer_is_quoted(command: Path, run_module: RunModule) -> None:
    command.write_text("#!/bin/sh\necho 'cfn coordinators: systemd says no' >&2\nexit 1\n")
    result = run_module("cfn_coordinator", state="restarted", id=3)
    assert result["msg"] == "cfn coordinators: systemd says no"


def test_a_number_is_needed(command: Path, run_module: RunModule) -> None:
    result = run_module("cfn_coordinator", state="drained")
    assert result["failed"]
    assert not command.with_name("words").exists()


def test_a_trial_that_does_not_hold_says_what_was_found_and_what_to_do(
    command: Path, run_module: RunModule
) -> None:
    text = "fd_count: 11000 count, allowed below 10000 count. capacity.yml -e agents=N runs fewer agents"
    check = {"name": "fd_count", "found": 11_000, "holds": False, "text": text}
    answer(command, {"ok": False, "checks": [check], "summary": [text]}, code=1)
    limits = {"fd_count": {"compare": "lt", "threshold": 10_000, "unit": "count"}}
    result = run_module("cfn_trial", trial="resource_analysis", agents=300, limits=limits)
    assert result["failed"]
    assert result["msg"] == f"resource_analysis: {text}"
    assert json.loads(command.with_name("input").read_text()) == limits


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("cfn_trial", {"trial": "teams", "agents": 28, "limits": {}}),
        ("cfn_stress", {"scenario": "cascade"}),
    ],
)
def test_check_mode_runs_no_agents(
    command: Path, run_module: RunModule, module: str, options: dict[str, Any]
) -> None:
    assert run_module(module, check_mode=True, **options)["changed"] is False
    assert not command.with_name("words").exists()


def test_cleanup_reports_a_change_only_if_something_went(command: Path, run_module: RunModule) -> None:
    nothing = dict.fromkeys(("requests", "outputs", "swarms", "inboxes", "processes"), 0)
    answer(command, {**nothing, "freed_bytes": 0, "retention_s": 60})
    assert run_module("cfn_cleanup", retention_s=60)["changed"] is False
    assert words(command) == "cleanup --json --retention-s 60"
    answer(command, {**nothing, "inboxes": 2, "freed_bytes": 9, "retention_s": 60})
    result = run_module("cfn_cleanup", check_mode=True)
    assert (result["changed"], result["freed_bytes"]) == (True, 9)
    assert words(command) == "cleanup --json --check"


def test_capacity_shows_its_difference(command: Path, run_module: RunModule) -> None:
    before, after = {"agents": 708, "retention_s": 86_400}, {"agents": 300, "retention_s": 86_400}
    answer(command, {"changed": True, "before": before, "after": after, "confirmed": True, "seconds": 0.9})
    result = run_module("cfn_capacity", agents=300)
    assert words(command) == "capacity --json --agents 300"
    assert "agents: 708\n" in result["diff"]["before"]
    assert "agents: 300\n" in result["diff"]["after"]


def test_a_soak_that_went_badly_is_an_answer_and_no_error(command: Path, run_module: RunModule) -> None:
    answer(command, {"changed": False, "state": "done", "result": {"ok": False}}, code=1)
    assert run_module("cfn_soak")["soak"]["result"] == {"ok": False}
    assert words(command) == "soak status --json"


def test_a_soak_is_started_with_its_order(command: Path, run_module: RunModule) -> None:
    answer(command, {"changed": True, "state": "running", "result": None})
    run_module("cfn_soak", state="started", seconds=60, rate_per_s=0.2, sizes="1:1")
    assert words(command) == "soak start --json --seconds 60 --rate 0.2 --sizes 1:1"
