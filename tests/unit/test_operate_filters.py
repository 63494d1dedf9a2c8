"""What soak, stress, capacity and cleanup derive from the stage table and the hosts' answers."""

from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import cfn_operate, cfn_trials
from tests.conftest import PROJECT

COMMON = PROJECT / "inventories/common/group_vars/all"
TABLE: dict[str, Any] = yaml.safe_load((COMMON / "stages.yml").read_text())["cfn_stages"]
DATA: dict[str, Any] = yaml.safe_load((COMMON / "trials.yml").read_text())


def record(kind: str, stage: str, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "stage": stage, "data": data}


def test_the_stage_in_force_is_the_newest_that_the_ledger_names() -> None:
    records = [record("started", "stage1"), record("flipped", "stage2"), record("failover", "stage3")]
    assert cfn_operate.stage_in_force(records, TABLE) == "stage2"
    assert cfn_operate.stage_in_force(records, TABLE, "stage3") == "stage3"


@pytest.mark.parametrize(("records", "named"), [([], ""), ([], "stage9"), ([], "epic")])
def test_no_stage_is_guessed(records: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(AnsibleFilterError, match="stage"):
        cfn_operate.stage_in_force(records, TABLE, named)


@pytest.mark.parametrize(
    ("stage", "length", "seconds", "whole"),
    [
        ("stage1", "8h", 28_800, "50:5"),
        ("stage1", "24h", 86_400, "100:5"),
        ("stage1", "1d", 86_400, "100:5"),
        ("stage2", "", 259_200, "300:5"),
        ("stage3", "1m", 60, "708:5"),
    ],
)
def test_a_soak_of_a_length(stage: str, length: str, seconds: int, whole: str) -> None:
    order = cfn_operate.soak_order(TABLE, stage, DATA["cfn_soak"], length)
    assert (order["seconds"], order["rate_per_s"]) == (seconds, 0.2)
    assert order["sizes"].endswith(f",{whole}")


@pytest.mark.parametrize("length", ["8", "0m", "-1h", "8 h", "9d", "1w", "99999d", "1.5h"])
def test_a_length_that_is_refused(length: str) -> None:
    with pytest.raises(AnsibleFilterError, match="is refused"):
        cfn_operate.soak_order(TABLE, "stage1", DATA["cfn_soak"], length)


def test_an_account_is_recorded_once() -> None:
    result = {"soak": "soak-1", "ok": True}
    hostvars: dict[str, dict[str, Any]] = {
        "one": {"soak_found": {"soak": {"soak": "soak-1", "order": {}, "result": result}}},
        "two": {"soak_found": {"soak": {"soak": "soak-2", "order": {}, "result": None}}},
    }
    found = cfn_operate.soak_unrecorded(["one", "two"], hostvars, [])
    assert found == {"one": {**result, "order": {}}}
    assert cfn_operate.soak_unrecorded(["one", "two"], hostvars, [record("soaked", "s", hosts=found)]) == {}


@pytest.mark.parametrize(
    ("environment", "kind", "named", "allowed"),
    [
        ("staging", "staging", "", True),
        ("staging", "staging", "staging", True),
        ("production", "production", "production", True),
        ("production", "production", "", False),
        ("production", "production", "prod", False),
        ("production", "production", "Production", False),
        ("staging", "staging", "production", False),
        ("lab", "production", "", False),
    ],
)
def test_production_is_stressed_by_its_exact_name_only(
    environment: str, kind: str, named: str, allowed: bool
) -> None:
    if allowed:
        assert cfn_operate.stress_allowed(environment, kind, named) == environment
        return
    with pytest.raises(AnsibleFilterError, match=f"stress_environment={environment}"):
        cfn_operate.stress_allowed(environment, kind, named)


def test_the_whole_stress_takes_the_stage_tables_figures() -> None:
    short = cfn_operate.stress_bounds(TABLE, "stage3", DATA["cfn_stress"], False)
    assert short == DATA["cfn_stress"]["bounds"]
    whole = cfn_operate.stress_bounds(TABLE, "stage3", DATA["cfn_stress"], True)
    assert whole["rapid_cycles"] == {"agents": 708, "every_s": 30, "run_s": 14_400}
    assert cfn_operate.stress_limits_s(whole, 300)["rapid_cycles"] == 14_520
    assert cfn_operate.stress_limits_s(short, 300) == dict.fromkeys(short, 300)


@pytest.mark.parametrize(
    ("agents", "retention_s", "found"),
    [
        ("300", "", {"agents": 300, "retention_s": None}),
        ("default", "default", {"agents": 708, "retention_s": "default"}),
        ("", "3600", {"agents": None, "retention_s": "3600"}),
    ],
)
def test_a_capacity_that_is_allowed(agents: str, retention_s: str, found: dict[str, Any]) -> None:
    assert cfn_operate.capacity_asked(TABLE, "stage3", agents, retention_s) == found


@pytest.mark.parametrize(
    ("agents", "retention_s"),
    [("709", ""), ("0", ""), ("many", ""), ("-1", ""), ("", "0"), ("", "1h"), ("", "")],
)
def test_a_capacity_that_is_refused(agents: str, retention_s: str) -> None:
    with pytest.raises(AnsibleFilterError):
        cfn_operate.capacity_asked(TABLE, "stage3", agents, retention_s)


def test_limits_come_from_the_stages_criteria_first() -> None:
    for stage in ("stage2", "stage3"):
        found = cfn_trials.limits(TABLE, stage, DATA["cfn_trials"]["limits"])
        assert found["worker_imbalance_pct"] == {"compare": "le", "threshold": 10, "unit": "pct"}
        assert found["mesh_delivery_rate_pct"]["threshold"] == 100
        assert found["memory_coordinator_kb"]["threshold"] == 1_500_000
        assert found["memory_worker_kb"]["threshold"] == 100_000
        assert found["fd_count"]["threshold"] == 10_000
        assert found["tmpfs_used_mb"]["threshold"] == 800
        assert found["failover_time_s"] == {"compare": "lt", "threshold": 30, "unit": "s"}
        assert found["messages_delivered_pct"]["threshold"] == 100
    assert cfn_trials.limits(TABLE, "stage1")["delivery_rate_pct"]["threshold"] == 95


def answers(**states: str) -> dict[str, dict[str, Any]]:
    return {
        host: {"failover_listed": {"topology": "hybrid", "coordinators": [{"id": 3, "state": state}]}}
        for host, state in states.items()
    }


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        ({"one": "up"}, {"host": "one", "way": "planned"}),
        ({"one": "draining"}, {"host": "one", "way": "planned"}),
        ({"one": "hung"}, {"host": "one", "way": "dead"}),
        ({"one": "up", "two": "down"}, {"host": "two", "way": "dead"}),
    ],
)
def test_the_host_of_a_failover(states: dict[str, str], chosen: dict[str, str]) -> None:
    assert cfn_trials.failover_choice(list(states), answers(**states), 3) == chosen


@pytest.mark.parametrize(
    ("hostvars", "words"),
    [
        (answers(one="up", two="up"), "which host is meant"),
        (answers(one="down", two="down"), "which host is meant"),
        (answers(one="up") | {"two": {"failover_listed": {"unreachable": True}}}, "which host is meant"),
        ({"one": {"failover_listed": {"topology": "flat"}}}, "flat"),
        (
            {"one": {"failover_listed": {"topology": "hybrid", "coordinators": [{"id": 1, "state": "up"}]}}},
            "1",
        ),
        ({"one": {}}, "it did not answer"),
        ({"one": {"failover_listed": {"unreachable": True, "msg": "timed out"}}}, "timed out"),
    ],
)
def test_a_failover_that_is_refused(hostvars: dict[str, Any], words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        cfn_trials.failover_choice(list(hostvars), hostvars, 3)


def test_a_capacity_that_one_host_does_not_have_is_told_of_all() -> None:
    now = {"agents": 300, "retention_s": "3600"}
    done = {"before": now | {"agents": 708}, "after": now, "seconds": 0.2, "confirmed": True}
    lines = cfn_operate.capacity_lines(
        ["one", "two"], {"one": {"capacity_now": done}, "two": {"capacity_now": {"msg": "timed\nout"}}}
    )
    assert lines[0].startswith("one: up to 300 agents (was 708)")
    assert lines[1] == "two: NOT CHANGED: timed out"


@pytest.mark.parametrize("value", ["", "0", "x", "3;", "-1", "100"])
def test_a_coordinator_that_is_no_number(value: str) -> None:
    with pytest.raises(AnsibleFilterError, match="is refused"):
        cfn_trials.coordinator_id(value)


def test_the_record_of_a_failover_is_its_longest_step() -> None:
    steps: list[dict[str, Any]] = [{"served_s": 0.2, "back_s": None}, {"served_s": 1.5, "back_s": 0.6}]
    found = cfn_trials.failover_record(steps, "one", 3, "planned", "why", [{"changed": False}])
    assert (found["ok"], found["served_s"], found["back_s"]) == (True, 1.5, 0.6)
    bad = cfn_trials.failover_record(
        steps, "one", 3, "planned", "why", [{"failed": True, "msg": "not\nbalanced"}]
    )
    assert (bad["ok"], bad["text"]) == (False, "not balanced")
