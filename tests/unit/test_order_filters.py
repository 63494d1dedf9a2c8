"""What the order of steps, the lock and attestations are asked with."""

import base64
import os
import socket
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import cfn_order
from tests.conftest import PROJECT

SHARED = PROJECT / "inventories/common/group_vars/all"
TABLE = yaml.safe_load((SHARED / "stages.yml").read_text())["cfn_stages"]
OPERATIONS = yaml.safe_load((SHARED / "operations.yml").read_text())
NOW = "2026-01-31T12:00:00.000Z"


def test_the_steps_of_the_table_in_order() -> None:
    assert [(each["stage"], each["name"]) for each in cfn_order.steps(TABLE)] == [
        ("stage1", "10"),
        ("stage2", "50"),
        ("stage3", "75"),
        ("stage3", "100"),
        ("epic", "100"),
        ("decommission", "v1"),
    ]


@pytest.mark.parametrize(("environment", "items"), [("production", 4), ("lab", 0), ("staging", 0)])
def test_each_inventory_says_what_it_requires(environment: str, items: int) -> None:
    own = yaml.safe_load((PROJECT / f"inventories/{environment}/group_vars/all/environment.yml").read_text())
    asked = cfn_order.step_asked(
        TABLE,
        {
            "environment": own["cfn_environment"],
            "kind": own["cfn_environment_kind"],
            "stage": "stage2",
            "traffic_pct": "50",
            "release": "r",
            "table_sha256": "",
            "now": NOW,
            "requires": own["cfn_requires"],
            "order": OPERATIONS["cfn_order"],
            "attestations": OPERATIONS["cfn_attestations"],
            "time_factor": own["cfn_time_factor"],
            "current": [],
            "staging_verdict": None,
            "allowed_signers": "",
            "override_by": "",
            "override_reason": "",
            "resume_by": "",
            "resume_reason": "",
        },
    )
    assert asked["traffic_pct"] == 50.0
    assert asked["rules"]["staging_verdict"] is (environment == "production")
    assert len(asked["rules"]["attestations"]) == items


def test_a_host_that_does_not_answer_runs_v1() -> None:
    hostvars: dict[str, Any] = {
        "one": {"order_status": {"status": {"version": "v2", "traffic_pct": 10, "release": "r"}}},
        "two": {"order_status": {"unreachable": True}},
    }
    assert [each["version"] for each in cfn_order.running(["one", "two"], hostvars)] == ["v2", "v1"]


def test_a_run_knows_itself_and_sees_that_another_is_dead() -> None:
    mine = cfn_order.run_id("ada")
    assert cfn_order.dead_run(mine) == ""
    pid, started, boot = mine["run"].split(".", 2)
    assert int(pid) == os.getpid()
    for run in (
        f"{pid}.{int(started) - 1}.{boot}",
        f"{pid}.{started}.another-boot",
        f"4194304.{started}.{boot}",
    ):
        assert cfn_order.dead_run(mine | {"run": run}) == run
    assert cfn_order.dead_run(mine | {"run": "4194304.1.x", "controller": "elsewhere"}) == ""
    assert cfn_order.dead_run(None) == ""
    assert mine["controller"] == socket.gethostname()


def test_the_watch_keeps_the_key_of_a_host_that_does_not_answer() -> None:
    def shown(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    hostvars = {
        "one": {"watch_host_key": {"content": shown("ssh-ed25519 NEW root@one\n")}},
        "two": {},
        "new": {},
    }
    before = shown("one ssh-ed25519 OLD\ntwo ssh-ed25519 TWO\ngone ssh-ed25519 X\n")
    assert cfn_order.known_hosts(hostvars, hostvars, before) == "one ssh-ed25519 NEW\ntwo ssh-ed25519 TWO\n"
    assert cfn_order.known_hosts(hostvars, hostvars) == "one ssh-ed25519 NEW\n"


def test_what_attest_records() -> None:
    assert cfn_order.attestation({"attest": "oncall_available", "by": "ada", "holds": ""}, NOW) == {
        "kind": "attested",
        "data": {"item": "oncall_available", "holds": True, "by": "ada", "note": ""},
    }
    incident = {"incident": "i-1", "severity": "P0", "attributed_to": "v2", "text": "t", "by": "ada"}
    assert cfn_order.attestation(incident, NOW)["data"]["started"] == NOW
    assert cfn_order.attestation({"learned": "much", "by": "ada"}, NOW)["kind"] == "learned"


@pytest.mark.parametrize(
    ("said", "holds"),
    [("", True), (None, True), (True, True), ("yes", True), (False, False), ("False", False)],
)
def test_an_attestation_holds_unless_it_is_said_not_to(said: object, holds: bool) -> None:
    given = {"attest": "oncall_available", "by": "ada", "holds": said}
    assert cfn_order.attestation(given, NOW)["data"]["holds"] is holds


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "found none"),
        ({"attest": "a", "learned": "b", "by": "c"}, "attest and learned"),
        ({"attest": "a"}, "needs -e by="),
        ({"incident": "i", "by": "c"}, "-e severity=... -e attributed_to=... -e text=..."),
        ({"attest": "a", "by": "c", "holds": "maybe"}, "holds=maybe"),
    ],
)
def test_half_an_attestation_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(AnsibleFilterError, match="".join(words)):
        cfn_order.attestation(given, NOW)
