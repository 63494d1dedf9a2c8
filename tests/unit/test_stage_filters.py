"""How a stage walks through its hosts, and what hosts go back to."""

from typing import Any

import pytest
import yaml

from plugins.filter.cfn_stage import (
    back_to,
    batch,
    config_before,
    deployed,
    drifting,
    failure,
    failures,
    ladder,
    outcome,
    units_of,
)
from tests.conftest import PROJECT

SHARED = PROJECT / "inventories/common/group_vars/all"
TABLE: dict[str, Any] = yaml.safe_load((SHARED / "stages.yml").read_text())["cfn_stages"]
SIZES = yaml.safe_load((SHARED / "running.yml").read_text())["cfn_batches"]

CONFIG = """\
# written by the rollout
CFN_COORDINATION_VERSION="v2"
CFN_TRAFFIC_PERCENTAGE="10"
CFN_EPOCH="3"
CFN_TOPOLOGY="hybrid"
CFN_COORDINATORS=3  # of 7
"""


@pytest.mark.parametrize(
    ("count", "batches"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (5, [1, 2, 2, 3, 3]), (10, [1, *[2] * 5, *[3] * 4])],
)
def test_one_host_then_half_of_all_then_the_rest(count: int, batches: list[int]) -> None:
    hosts = [f"h{number}" for number in range(count)]
    assert [batch(hosts, host, SIZES) for host in hosts] == batches
    assert batch(hosts, "localhost", SIZES) == 0


def test_hosts_that_no_size_reaches_are_in_the_last_batch() -> None:
    assert batch(["a", "b", "c", "d"], "d", [1, 1]) == 2


def test_a_failure_says_its_task_and_what_was_found() -> None:
    found = failure({"msg": "no\n  space"}, "engine : Bring the artifact", "deploy")
    assert found == {"step": "deploy", "task": "Bring the artifact", "found": "no space"}
    assert failure({}, "t", "smoke")["found"] == "it does not say why"


def test_a_task_without_progress_names_its_deadline() -> None:
    late = failure({"msg": "Timed out", "timedout": {"period": 60}}, "router : Flip the traffic", "flip")
    assert late["found"] == "no end within its deadline of 60 s"


def test_failed_and_lost_hosts_are_kept_with_the_step_that_lost_them() -> None:
    kept = {"step": "deploy", "task": "t", "found": "f"}
    hostvars: dict[str, dict[str, Any]] = {
        "localhost": {"stage_failures": {"early": kept}},
        "early": {"stage_failure": {"step": "later", "task": "", "found": ""}},
        "bad": {"stage_failure": kept},
        "lost": {},
        "well": {},
    }
    found = failures(["early", "bad", "lost", "well"], hostvars, ["bad", "well"], "smoke")
    assert found["early"] == kept
    assert found["bad"] == kept
    assert (found["lost"]["step"], "unreachable" in found["lost"]["found"]) == ("smoke", True)
    assert "well" not in found


def test_a_deployment_is_what_changed_anything_that_runs() -> None:
    calm: dict[str, dict[str, Any]] = {
        "a": {"engine_release": {"changed": False}, "v1_install": {"changed": True}}
    }
    assert not deployed(["a"], calm)
    assert deployed(["a", "b"], calm | {"b": {"engine_limits": {"changed": True}}})


def test_only_hosts_that_said_so_are_without_drift() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "same": {"engine_drift": {"drift": []}},
        "differs": {"engine_drift": {"drift": ["/etc/cfn/config.sh: absent"]}},
        "failed": {"engine_drift": {"failed": True, "msg": "no"}},
        "skipped": {"engine_drift": {"skipped": True}},
        "silent": {},
    }
    assert drifting(hostvars, hostvars) == ["differs", "failed", "skipped", "silent"]


def test_a_configuration_goes_back_without_its_traffic() -> None:
    now = {"version": "v1", "traffic_pct": 0, "epoch": 9}
    found = config_before(CONFIG, now)
    assert found.splitlines()[1:4] == [
        'CFN_COORDINATION_VERSION="v1"',
        'CFN_TRAFFIC_PERCENTAGE="0"',
        'CFN_EPOCH="9"',
    ]
    assert found.splitlines()[4:] == CONFIG.splitlines()[4:]


def test_the_units_of_a_configuration() -> None:
    hybrid = units_of(CONFIG)
    assert [name for name in hybrid if "@" in name] == [
        f"cfn-coordinator@{number}.service" for number in (1, 2, 3)
    ]
    assert not [name for name in units_of('CFN_TOPOLOGY="flat"\nCFN_COORDINATORS="7"\n') if "@" in name]


@pytest.mark.parametrize(
    ("stage", "before", "now", "version", "percent"),
    [
        ("stage2", ("v2", 10), ("v2", 50), "v2", "10"),  # what it had
        ("stage3", ("v2", 75), ("v2", 100), "v2", "75"),
        ("stage1", ("v1", 0), ("v2", 10), "v1", "0"),
        ("stage1", ("v1", 50), ("v2", 10), "v1", "0"),  # V1's own percentage is none of V2's
        ("stage2", ("v2", 50), ("v2", 50), "v2", "10"),  # nothing flipped: the next lower share
        ("stage3", ("v2", 100), ("v2", 75), "v2", "50"),  # lowered: never up again
        ("stage1", ("v2", 10), ("v2", 10), "v1", "0"),
    ],
)
def test_after_a_fail_traffic_goes_down(
    stage: str, before: tuple[str, int], now: tuple[str, int], version: str, percent: str
) -> None:
    states = [{"version": version, "traffic_pct": pct} for version, pct in (before, now)]
    found = back_to(states[0], states[1], TABLE[stage]["objectives"]["rollback_to_pct"])
    assert found == {"version": version, "percent": percent}


def test_the_account_of_a_run_that_was_taken_back() -> None:
    status = {"status": {"release": "r1", "version": "v2", "traffic_pct": 10}}
    now = {"version": "v2", "traffic_pct": 10, "epoch": 4}
    hostvars: dict[str, dict[str, Any]] = {
        "back": {"v1_install": {}, "order_status": status, "takeback_done": now},
        "new": {
            "v1_install": {},
            "order_status": {"status": {}},
            "takeback_done": {"version": "v1", "traffic_pct": 0},
        },
        "bad": {"v1_install": {}, "order_status": status, "takeback_problem": "no space"},
        "lost": {"v1_install": {}, "order_status": status},
        "later": {},
    }
    failed = {"bad": {"step": "deploy", "task": "Bring the artifact", "found": "no space"}}
    found = outcome(list(hostvars), hostvars, failed, "stage2")
    for words in (
        'bad failed in deploy, task "Bring the artifact": no space',
        "back was taken back: release r1; v2 at 10 %",
        "new was taken back: nothing before; the engine stays, without traffic; v1 at 0 %",
        "bad was NOT taken back: no space",
        "lost was NOT taken back: it does not answer",
        "later was not touched",
        "mend bad, then the same command again",
    ):
        assert words in found["text"]
    assert set(found["not_taken_back"]) == {"bad", "lost"}
    assert (found["hosts"]["back"]["version"], found["hosts"]["back"]["traffic_pct"]) == ("v2", 10)
    assert "later" not in found["hosts"]


def test_of_a_part_of_a_stage_nothing_is_said_to_be_taken_back() -> None:
    failed = {"a": {"step": "flip", "task": "Flip the traffic", "found": "nobody answers"}}
    found = outcome(["a"], {"a": {"traffic_flip": {}}}, failed, "stage1", whole=False)
    assert 'a failed in flip, task "Flip the traffic": nobody answers' in found["text"]
    assert "nothing was taken back" in found["text"]
    assert "a was" not in found["text"]


def test_after_a_fail_the_account_holds_the_verdict_and_keeps_the_release() -> None:
    hostvars = {"a": {"traffic_flip": {}, "takeback_done": {"version": "v2", "traffic_pct": 10}}}
    found = outcome(["a"], hostvars, {}, "stage2", "FAIL  lab stage2")
    assert found["text"].startswith("stage2: FAIL at its first look.\nFAIL  lab stage2")
    assert "a: traffic is back to v2 at 10 %; the release stays" in found["text"]


def test_v1_is_tried_before_v2() -> None:
    steps = ladder(TABLE["stage3"]["smoke"])
    assert [(step["version"], step["agents"]) for step in steps] == [
        ("v1", 10),
        ("v2", 10),
        ("v2", 500),
        ("v2", 708),
    ]
