"""What a rollout derives from the hosts' answers."""

from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter.cfn_rollout import gate_request, next_epoch, step
from tests.conftest import PROJECT

TABLE: dict[str, Any] = yaml.safe_load(
    (PROJECT / "inventories/common/group_vars/all/stages.yml").read_text()
)["cfn_stages"]

ENVIRONMENT = {
    "name": "lab",
    "kind": "production",
    "time_factor": 20160,
    "asked_by": "me",
    "now": "2026-01-31T12:00:00.000Z",
}


@pytest.mark.parametrize(
    "traffic", ["175", "abc", "", "75", "0", "-5", "1e1", "10.001", " 5", "5\n", "nan", "0.5"]
)
def test_traffic_that_stage_1_refuses(traffic: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        step(TABLE, "stage1", "production", traffic)
    assert f"traffic={traffic} is refused" in str(caught.value)
    assert "1 to 10" in str(caught.value)
    assert "Nothing was touched" in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "kind", "traffic", "name", "traffic_pct"),
    [
        ("stage1", "production", None, "10", "10"),
        ("stage1", "production", "5", "10", "5"),
        ("stage1", "production", 5, "10", "5"),
        ("stage1", "production", "2.5", "10", "2.5"),
        ("stage1", "staging", None, "staging", "100"),
        ("stage1", "staging", "100", "staging", "100"),
        ("stage3", "production", "75", "75", "75"),
        ("stage3", "production", "76", "100", "76"),
    ],
)
def test_traffic_picks_the_step(stage: str, kind: str, traffic: object, name: str, traffic_pct: str) -> None:
    assert step(TABLE, stage, kind, traffic) == {"name": name, "traffic_pct": traffic_pct}


def test_the_next_epoch_is_above_every_host_that_answered() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "a": {"traffic_before": {"before": {"version": "v2", "traffic_pct": 10, "epoch": 4}}},
        "b": {"traffic_before": {"before": {"version": "v2", "traffic_pct": 10, "epoch": 9}}},
        "c": {"traffic_before": {"unreachable": True}},
        "d": {},
    }
    assert next_epoch(hostvars, hostvars) == 10
    assert next_epoch(["d"], hostvars) == 1
    assert next_epoch(["b"], hostvars, "10") == 9
    assert next_epoch(["b"], hostvars, "5") == 10
    assert next_epoch(["a", "b"], hostvars, "10") == 10
    assert next_epoch(["b", "d"], hostvars, "10") == 10
    read: dict[str, dict[str, Any]] = {
        "a": {"order_status": {"status": {"version": "v2", "traffic_pct": 10, "epoch": 4}}},
        "b": {"order_status": {"status": {}}},
    }
    assert next_epoch(read, read) == 5
    assert next_epoch(["a"], read, "10") == 4


def status(since: str, release_since: str = "2026-01-31T10:00:00.000Z") -> dict[str, Any]:
    return {
        "status": {
            "release": "r1",
            "release_since": release_since,
            "since": since,
            "version": "v2",
            "traffic_pct": 10,
        }
    }


def test_the_window_begins_with_the_last_host_s_traffic_or_release() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "a": {"gate_status": status("2026-01-31T10:01:00.000Z"), "gate_metrics": {"evidence": {"host": "a"}}},
        "b": {"gate_status": status("2026-01-31T10:02:00.000Z"), "gate_metrics": {"failed": True}},
        "c": {},
    }
    request = gate_request(["a", "b", "c"], hostvars, "stage1", TABLE, ENVIRONMENT)
    assert request["since"] == "2026-01-31T10:02:00.000Z"
    assert request["hosts"] == ["a", "b", "c"]
    assert list(request["evidence"]) == ["a"]
    assert (request["step"], request["ordered"]) == ("10", {"version": "v2", "traffic_pct": 10})

    hostvars["a"]["gate_status"] = status("2026-01-31T10:01:00.000Z", "2026-01-31T11:00:00.000Z")
    later = gate_request(["a", "b", "c"], hostvars, "stage1", TABLE, ENVIRONMENT)
    assert later["since"] == "2026-01-31T11:00:00.000Z"


@pytest.mark.parametrize(
    ("by_hand", "others"),
    [
        (["2026-01-31T11:00:00.000Z"], ["2026-01-31T10:00:00.000Z"]),  # as many: the older order
        (["2026-01-31T09:00:00.000Z"], ["2026-01-31T10:00:00.000Z", "2026-01-31T10:00:01.000Z"]),
    ],
)
def test_who_is_on_v1_by_hand_is_the_exception_not_the_order(by_hand: list[str], others: list[str]) -> None:
    hostvars: dict[str, dict[str, Any]] = {}
    for number, since in enumerate(by_hand + others):
        hostvars[f"h{number}"] = {"gate_status": status(since)}
    for number in range(len(by_hand)):
        hostvars[f"h{number}"]["gate_status"]["status"]["version"] = "v1"
    request = gate_request(list(hostvars), hostvars, "stage1", TABLE, ENVIRONMENT)
    assert request["ordered"] == {"version": "v2", "traffic_pct": 10}


def test_without_any_answer_the_request_can_still_be_judged() -> None:
    request = gate_request(["a"], {"a": {}}, "stage1", TABLE, ENVIRONMENT)
    assert request["since"] == ENVIRONMENT["now"]
    assert request["evidence"] == {}


def test_evidence_comes_from_the_hosts_or_from_one_prometheus() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "a": {"gate_metrics": {"evidence": {"v": 2}}},
        "b": {
            "gate_metrics": {"skipped": True},
            "gate_series": {"evidence_by_host": {"b": {"error": "down"}}},
        },
        "c": {"gate_series": {"failed": True}},
        "d": {"gate_metrics": {"failed": True, "msg": "d: events cannot be read"}},
        "e": {"gate_metrics": {"unreachable": True, "msg": "no route"}},
    }
    request = gate_request([*"abcde"], hostvars, "stage1", TABLE, ENVIRONMENT)
    errors = {"b": {"error": "down"}, "d": {"error": "d: events cannot be read"}}
    assert request["evidence"] == {"a": {"v": 2}} | errors
    assert request["blind_limit_s"] == 900


def test_a_look_at_a_past_window_takes_what_was_ordered_then() -> None:
    past = {"since": "2026-01-24T12:00:00.000Z", "ordered": {"version": "v2", "traffic_pct": 5}}
    request = gate_request(["a"], {"a": {}}, "stage1", TABLE, ENVIRONMENT | past)
    assert (request["since"], request["ordered"]) == (past["since"], past["ordered"])
    assert request["retrospective"] is True
    now = gate_request(["a"], {"a": {}}, "stage1", TABLE, ENVIRONMENT | {"since": "", "ordered": {}})
    assert now["retrospective"] is False


def test_where_nobody_is_asked_attestations_are_shown_and_not_counted() -> None:
    for asked, dry in ((True, False), (False, True)):
        request = gate_request(["a"], {"a": {}}, "stage1", TABLE, ENVIRONMENT | {"attestations": asked})
        found = {each["name"]: each.get("dry_run", False) for each in request["criteria"]}
        assert (found["dashboards_healthy"], found["error_rate"]) == (dry, False)
