"""The ways back: where they go, when they refuse, when a step suffices, and how they are told."""

import time
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from cfn.judge.request import read_request
from plugins.filter import cfn_way_back as back
from tests.conftest import PROJECT

TABLE: dict[str, Any] = yaml.safe_load(
    (PROJECT / "inventories/common/group_vars/all/stages.yml").read_text()
)["cfn_stages"]
RULES: dict[str, Any] = yaml.safe_load(
    (PROJECT / "inventories/common/group_vars/all/operations.yml").read_text()
)["cfn_ways_back"]
DECIDED_S = 1_790_000_000.0
V1_WORKS = {"works": True, "decommissioned": False, "problem": "", "bears_all": True}
V1_BROKEN = {**V1_WORKS, "works": False, "problem": "10 agents: delivery 0.0 %"}


def host(pct: float = 100, *, epoch: int = 7, version: str = "v2", **changes: Any) -> dict[str, Any]:
    standing = {
        "before": {"version": version, "traffic_pct": pct, "epoch": epoch},
        "max_agents": 708,
        "engine": "running",
        "v1": V1_WORKS,
        "refused": "",
    }
    return {"back_standing": {"installed": True, "standing": standing | changes}}


UNREACHABLE = {"back_standing": {"unreachable": True, "msg": "no\nroute to host"}}


def plan(hostvars: dict[str, Any], stage: str = "stage3", **asked: Any) -> dict[str, Any]:
    defaults = {"to": "", "force": False, "decided_s": DECIDED_S, "control": ["control"]}
    everybody = {"control": {"back_standing": {"installed": True, "standing": {}}}} | hostvars
    return back.plan(hostvars, everybody, TABLE[stage], defaults | asked)


@pytest.mark.parametrize(
    ("stage", "pct", "to", "steps"),
    [
        ("stage3", 100, "", [50, 10, 0]),
        ("stage3", 75, "", [50, 10, 0]),
        ("stage3", 50, "", [10, 0]),
        ("stage2", 50, "", [10, 0]),
        ("stage2", 10, "", [0]),
        ("stage1", 5, "", [0]),
        ("stage3", 100, "v1", [0]),
        ("stage3", 100, "10", [10]),
    ],
)
def test_the_way_goes_down_by_the_stages_own_steps(
    stage: str, pct: float, to: str, steps: list[float]
) -> None:
    assert plan({"a": host(pct), "b": host(pct)}, stage, to=to)["steps"] == steps


def test_on_v1_already_v1_is_proved_again() -> None:
    assert plan({"a": host(100, version="v1")})["steps"] == [0]


@pytest.mark.parametrize(
    ("stage", "to"), [("stage1", "10"), ("stage3", "75"), ("stage3", "v2"), ("stage3", "0")]
)
def test_a_destination_that_is_none_is_refused(stage: str, to: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"to={to} is refused: .*v1.* Nothing was touched"):
        plan({"a": host(100)}, stage, to=to)


def test_a_way_back_only_lowers() -> None:
    with pytest.raises(AnsibleFilterError, match="10 % is in force, and a way back only lowers"):
        plan({"a": host(10)}, to="50")
    assert back.target({"version": "v2", "traffic_pct": 10}, 50) == {"version": "v2", "percent": "10"}
    assert back.target({"version": "v2", "traffic_pct": 100}, 50) == {"version": "v2", "percent": "50"}
    assert back.target({"version": "v1", "traffic_pct": 100}, 50) == {"version": "v1"}
    assert back.target({"version": "v2", "traffic_pct": 10}, 0) == {"version": "v1"}
    assert back.target(None, 50) == {"version": "v1"}


def test_the_epoch_overtakes_what_is_under_way() -> None:
    assert plan({"a": host(epoch=7)})["epoch"] == int(DECIDED_S)
    late = int(DECIDED_S) + 5  # a clock that is behind
    assert plan({"a": host(epoch=7), "b": host(epoch=late)})["epoch"] == late + back.EPOCHS_UP


def test_a_broken_v1_takes_nothing_from_a_v2_that_runs() -> None:
    refused = plan({"a": host(), "b": host(v1=V1_BROKEN)})["refused"]
    assert "Nothing was touched" in refused
    assert "b: 10 agents: delivery 0.0 %" in refused
    assert "a: " not in refused
    assert plan({"a": host(v1=V1_BROKEN)}, force=True)["refused"] == ""
    assert plan({"a": host(v1=V1_BROKEN, engine="not running")})["refused"] == ""


def test_a_v1_that_is_gone_takes_nothing_whoever_forces_it() -> None:
    gone = {**V1_BROKEN, "decommissioned": True, "problem": "CFN_V1_ENABLED is false"}
    refused = "V1 was decommissioned: restore_v1.yml"
    assert refused in plan({"a": host(v1=gone, refused=refused)}, force=True)["refused"]


def test_a_host_that_cannot_be_reached_holds_up_nobody() -> None:
    found = plan({"a": host(), "gone": UNREACHABLE})
    assert found["hosts"] == ["a"]
    assert found["unreached"] == {"gone": "no route to host"}
    assert found["judge"] == "control"
    assert found["facts_known"]
    without = plan({"a": host(), "control": UNREACHABLE})
    assert without["judge"] == "a"
    assert not without["facts_known"]


def test_where_v1_bears_less_it_is_said() -> None:
    v1 = {**V1_WORKS, "bears_all": False, "capacity_per_s": 20.0, "demand_per_s": 55.5}
    warnings = plan({"a": host(v1=v1)})["warnings"]
    assert warnings == [
        "a: V1 bears about 20 coordinations a second, and 55.5 are asked for: take load off it"
    ]


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_a_step_is_judged_by_the_guardrails_in_buckets_that_fit(stage: str) -> None:
    gate = {
        "environment": "lab", "stage": stage, "step": "50", "asked_by": "me",
        "now": "2026-01-31T12:04:00.000Z", "since": "2026-01-31T12:00:00.000Z",
        "ordered": {"version": "v2", "traffic_pct": 50}, "hosts": ["a"], "time_factor": 1,
        "window_s": 604800, "criteria": TABLE[stage]["production"]["criteria"],
        "triggers": TABLE[stage]["triggers"],
    }  # fmt: skip
    narrowed = back.request(gate, TABLE[stage], RULES, True)
    asked = read_request(narrowed)  # the judge itself takes it
    assert [each.name for each in asked.triggers] == [each["name"] for each in TABLE[stage]["triggers"]]
    assert not asked.criteria
    step_s = TABLE[stage]["objectives"]["rollback_step_s"]
    for each in asked.triggers:
        assert each.window_s <= step_s
        needed = {"n_of_m": "m", "consecutive": "n"}.get(each.per.kind)
        buckets = getattr(each.per, needed) if needed else 1
        assert each.settle_s + (buckets + 1) * each.bucket_s <= step_s, each.name
    assert read_request(back.request(gate, TABLE[stage], RULES, False)).facts is None


def test_the_time_of_a_step_has_a_floor_on_the_labs_scale() -> None:
    assert back.look_s(TABLE["stage3"], 1, 4) == 60
    assert back.look_s(TABLE["stage3"], 20160, 4) == back.FLOOR_STEP_S / 4


@pytest.mark.parametrize(
    ("word", "last", "goes_on"),
    [
        ("FAIL", False, True),
        ("FAIL", True, True),
        ("PASS", True, False),
        ("INCONCLUSIVE", True, False),
        ("NO_DATA", False, False),
        ("NO_DATA", True, True),
        ("ERROR", True, True),
    ],
)
def test_trouble_persists(word: str, last: bool, goes_on: bool) -> None:
    assert back.persists({"verdict": word}, last) is goes_on


def test_a_judge_that_did_not_answer_is_trouble() -> None:
    assert back.persists({}, True)


def way(**changes: Any) -> dict[str, Any]:
    common = {"id": "x", "decided_s": DECIDED_S, "objective_s": 300, "to_pct": 0, "epoch": 8}
    return {**common, **changes}


def proved() -> dict[str, Any]:
    found = host(proved=True, changed=True, confirmed=True, seconds=0.2)
    found["back_standing"]["standing"]["epoch"] = 9
    return found


def test_an_outcome_names_the_hosts_that_v1_is_not_proved_on() -> None:
    hostvars = {
        "good": proved(),
        "gone": UNREACHABLE,
        "broken": {"back_standing": {"msg": "V1 is\nsick", "standing": {"proved": False}}},
        "bare": {"back_standing": {"installed": False, "standing": {}}},
    }
    ended = back.outcome(list(hostvars), hostvars, way(), DECIDED_S + 8.25)
    assert ended["proved"] == ["good"]
    assert ended["unproved"] == {
        "gone": "unreachable: no route to host",
        "broken": "V1 is sick",
        "bare": "no release is installed there",
    }
    assert ended["pending"] == ["gone"]
    assert (ended["seconds"], ended["met"], ended["epoch"]) == (8.2, False, 9)
    assert "on 1 of 4 hosts, 8.2 s after the decision; the objective of 300 s is NOT met" in ended["text"]
    assert "cfn fallback --epoch 9" in ended["text"]


@pytest.mark.parametrize(("took_s", "met"), [(299.0, True), (301.0, False)])
def test_the_time_is_held_against_its_objective(took_s: float, met: bool) -> None:
    ended = back.outcome(["a"], {"a": proved()}, way(), DECIDED_S + took_s)
    assert (ended["met"], ended["objective_s"]) == (met, 300)
    # What cannot be reached is no fault of the way back.
    ended = back.outcome(["a", "b"], {"a": proved(), "b": UNREACHABLE}, way(), DECIDED_S + took_s)
    assert ended["met"] is met


@pytest.mark.parametrize(
    ("flip", "proof", "to_pct", "why"),
    [
        ({"confirmed": True}, {"steps": []}, 0, ""),
        ({"confirmed": True}, {"steps": [], "msg": "served by v2"}, 0, "served by v2"),
        ({"confirmed": True}, {"skipped": True}, 0, "it was not tried"),
        ({"confirmed": True}, {"skipped": True}, 50, ""),
        ({"msg": "epoch 3 is refused", "failed": False}, {"skipped": True}, 50, "epoch 3 is refused"),
    ],
)
def test_a_planned_way_is_proved_by_flip_and_coordination(
    flip: dict[str, Any], proof: dict[str, Any], to_pct: float, why: str
) -> None:
    hostvars = {"a": host() | {"back_flip": flip, "back_proof": proof}}
    ended = back.outcome(["a"], hostvars, way(to_pct=to_pct), DECIDED_S + 5)
    assert ended["unproved"] == ({"a": why} if why else {})


def test_a_steady_step_says_so() -> None:
    steps = back.step_taken([], 50.0, {"verdict": "FAIL", "reasons": ["trigger_x: broken"]}, DECIDED_S + 30)
    steps = back.step_taken(steps, 10.0, {"verdict": "INCONCLUSIVE", "reasons": ["r"]}, DECIDED_S + 280)
    hostvars = {"a": host() | {"back_flip": {"confirmed": True}}}
    asked = way(to_pct=10, objective_s=900, steps=steps, ended_s=steps[-1]["at_s"])
    lines = back.outcome(["a"], hostvars, asked, DECIDED_S + 290)["text"].splitlines()
    assert lines[0].startswith("V2 stays at 10 % on 1 of 1 hosts: no guardrail is broken there, 280 s after")
    assert lines[1] == "50 % until 30 s after the decision, guardrails FAIL: trigger_x: broken"
    assert lines[2] == "10 % until 280 s after the decision, guardrails INCONCLUSIVE"


def test_a_dry_run_claims_nothing() -> None:
    text = back.outcome(["a"], {"a": host()}, way(check=True), DECIDED_S)["text"]
    assert text == "Predicted: everything back to V1. Nothing was changed."


KNOWN: dict[str, dict[str, Any]] = {
    "a": {"release_known": {"version": "2", "previous": "1", "kept": ["1", "2"]}},
    "b": {"release_known": {"version": "2", "previous": "1", "kept": ["0", "1", "2"]}},
    "off": {"release_known": {"msg": "unreachable"}},
}


@pytest.mark.parametrize(("named", "release"), [("", "1"), ("1", "1"), ("2", "2")])
def test_the_release_to_go_back_to(named: str, release: str) -> None:
    assert back.release_before(KNOWN, KNOWN, named) == release


def test_a_release_that_a_host_has_not_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match=r"release=0 is refused.*\na: 1, 2$"):
        back.release_before(KNOWN, KNOWN, "0")
    with pytest.raises(AnsibleFilterError, match="no host answered"):
        back.release_before(["off"], KNOWN, "1")


def test_a_dry_run_of_going_back_to_a_release_claims_nothing() -> None:
    asked = {"id": "x", "release": "1", "decided_s": 0, "objective_s": 60, "check": True}
    text = back.release_outcome(KNOWN, KNOWN, asked, 1)["text"]
    assert text == "Predicted: release 1 in force on all hosts. Nothing was changed."


@pytest.mark.parametrize(
    ("agents", "stage"), [(100, "stage1"), (300, "stage2"), (708, "stage3"), (150, "stage2")]
)
def test_the_stage_is_told_by_what_the_hosts_are_configured_for(agents: int, stage: str) -> None:
    assert back.stage_of(["a"], {"a": host(max_agents=agents)}, TABLE) == stage


def test_a_host_that_came_back_is_named_until_it_follows() -> None:
    last = {
        "kind": "rolled_back", "time": "T", "sequence": 9, "stage": "stage1",
        "data": {"epoch": 9, "to_pct": 0, "text": "V1 serves"},
    }  # fmt: skip
    late = {"a": {"status_result": {"status": {"version": "v2", "traffic_pct": 10, "epoch": 5}}}}
    lines = back.left_behind(["a"], late, [last])
    assert "a still gives V2 10 %" in lines[0]
    followed = {"a": {"status_result": {"status": {"version": "v1", "traffic_pct": 10, "epoch": 9}}}}
    assert back.left_behind(["a"], followed, [last]) == []
    assert back.left_behind(["a"], late, [last, {**last, "kind": "flipped"}]) == []
    assert back.left_behind(["a"], {"a": {}}, [last]) == []
    assert back.left_behind(["a"], late, []) == []


def test_the_decision_is_when_the_command_was_typed() -> None:
    before_s = back.decided_s("")
    time.sleep(0.02)
    assert back.decided_s("") == pytest.approx(before_s, abs=0.01)
    assert before_s < time.time()
