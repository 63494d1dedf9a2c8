"""The ways back on two real hosts: step by step under load, at once with almost everything dead, refused
where V1 cannot take it, rehearsed, and one release back."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.end_to_end.conftest import CFN, Lab
from tests.end_to_end.test_stage1 import HOSTS, assert_nothing_was_lost, loaded

pytestmark = pytest.mark.lab

OVERRIDE = ("-e", "override_by=test", "-e", "override_reason=test")
V1 = "/opt/cfn-v1/bin/coordinate"


def in_force(lab: Lab) -> list[tuple[str, float]]:
    """Version and share that each host's router runs."""
    found = [lab.cfn(host, "status")["router_status"] for host in HOSTS]
    return [(each["version"], each["traffic_pct"]) for each in found]


def last_record(lab: Lab, kind: str = "rolled_back") -> dict[str, Any]:
    records = lab.cfn("one", "ledger show --last 50")["records"]
    found: dict[str, Any] = [record for record in records if record["kind"] == kind][-1]
    return found


def words(output: str) -> str:
    return " ".join(output.split())


def stage1(lab: Lab, *arguments: str) -> None:
    played = lab.play("stage1.yml", *OVERRIDE, *arguments)
    assert played.returncode == 0, played.output


@contextmanager
def broken_v1(lab: Lab, host: str) -> Iterator[None]:
    """V1 ends with an error on a host while the block runs."""
    lab.run(host, f"mv {V1} {V1}.kept; printf '#!/bin/sh\\nexit 1\\n' >{V1}; chmod 755 {V1}")
    try:
        yield
    finally:
        lab.run(host, f"mv {V1}.kept {V1}")


def test_step_by_step_under_load(pair: Lab) -> None:
    """Steady at 10 %, the way back of stage 2 stops there; while coordinators are down it goes on to V1."""
    stage2 = pair.play("stage2.yml", *OVERRIDE)
    assert stage2.returncode == 0, stage2.output
    with loaded(pair) as reports:
        steady = pair.play("rollback_stage2.yml")
        assert steady.returncode == 0, steady.output
        assert "V2 stays at 10 % on 2 of 2 hosts: no guardrail is broken there" in words(steady.output)
        assert in_force(pair) == [("v2", 10)] * 2
        record = last_record(pair)
        assert (record["stage"], record["data"]["to_pct"], record["data"]["met"]) == ("stage2", 10, True)
        assert record["data"]["objective_s"] == 900

        again = pair.play("stage2.yml", *OVERRIDE)
        assert again.returncode == 0, again.output
        pair.run("two", "systemctl stop cfn-coordinator@3 cfn-coordinator@5")
        persisting = pair.play("rollback_stage2.yml")
        assert persisting.returncode == 0, persisting.output
        assert "V1 serves, proved by a real coordination on 2 of 2 hosts" in words(persisting.output)
        assert "guardrails FAIL: trigger_cascade" in words(persisting.output)
        assert [version for version, _ in in_force(pair)] == ["v1", "v1"]
        assert [each["to_pct"] for each in last_record(pair)["data"]["steps"]] == [10, 0]
    assert_nothing_was_lost(reports)


@pytest.mark.full
def test_straight_to_v1_and_what_came_too_late(pair: Lab) -> None:
    stage1(pair)
    epoch = pair.cfn("one", "traffic")["before"]["epoch"]
    straight = pair.play("rollback_stage3.yml", "-e", "to=v1")
    assert straight.returncode == 0, straight.output
    assert len(last_record(pair)["data"]["steps"]) == 1
    # The controller that was overtaken has the next epoch in its hand; yesterday's is no better.
    for late in (epoch, epoch + 1):
        assert "is refused" in pair.run(
            "two", f"{CFN} traffic --version v2 --percent 10 --epoch {late} 2>&1; test $? = 5"
        )
    assert [version for version, _ in in_force(pair)] == ["v1", "v1"]


@pytest.mark.parametrize("to", ["75", "v2", "abc", "0"])
def test_a_destination_that_is_none_touches_nothing(pair: Lab, to: str) -> None:
    before = in_force(pair)
    played = pair.play("rollback_stage3.yml", "-e", f"to={to}")
    assert played.returncode != 0
    assert f"to={to} is refused: v1, 50, 10 are allowed here" in words(played.output)
    assert (played.changed, in_force(pair)) == (0, before)


@pytest.mark.full
def test_a_broken_v1_takes_nothing_from_a_v2_that_runs(pair: Lab) -> None:
    stage1(pair)
    with broken_v1(pair, "two"):
        played = pair.play("rollback_stage1.yml")
        assert played.returncode == 20, played.output
        assert "V1 cannot take the traffic. Nothing was touched on any host." in words(played.output)
        assert "two: V1 does not work: 10 agents" in words(played.output)
        assert "one: V1" not in played.output
        assert in_force(pair) == [("v2", 10)] * 2

        at_once = pair.play("fallback_v1.yml")  # the others are not held up, and this host is named
        assert at_once.returncode != 0
        assert "on 1 of 2 hosts" in words(at_once.output)
        assert in_force(pair) == [("v1", 10), ("v2", 10)]
        status = pair.play("status.yml")
        assert "two still gives V2 10 %, against the way back of" in words(status.output)

        pair.run("two", "systemctl stop cfn-coordination")  # now V2 is no better than V1 there
        dead = pair.play("fallback_v1.yml")
        assert "two: NOT PROVED" in words(dead.output)
        assert [version for version, _ in in_force(pair)] == ["v1", "v1"]
    assert pair.play("fallback_v1.yml").returncode == 0


def test_at_once_without_engine_control_host_and_a_host(pair: Lab) -> None:
    """The control host is off and V2 dead on the other one. What was done is in the ledger afterwards,
    and the host that was off follows."""
    stage1(pair)
    epoch = pair.cfn("one", "traffic")["before"]["epoch"]
    pair.run("two", "systemctl stop cfn-coordination cfn-workers cfn-metrics")
    subprocess.run(["lab", "--name", pair.name, "off", "one"], check=True, capture_output=True)
    try:
        played = pair.play("fallback_v1.yml")
    finally:
        subprocess.run(["lab", "--name", pair.name, "on", "one"], check=True, capture_output=True)
    assert played.returncode != 0
    assert "V1 serves, proved by a real coordination on 1 of 2 hosts" in words(played.output)
    assert "one: NOT PROVED: unreachable" in words(played.output)
    assert "sudo /opt/cfn/current/bin/cfn fallback --epoch" in words(played.output)
    spooled = json.loads(pair.run("two", f"{CFN} spool show"))["lines"]
    assert spooled[-1]["back"]["data"]["pending"] == ["one"]

    for _ in range(2):  # joined once
        status = pair.play("status.yml")
        assert status.returncode == 0, status.output
        assert "one still gives V2 10 %, against the way back of" in words(status.output)
    records = pair.cfn("one", "ledger show --last 50")["records"]
    joined = [record for record in records if record["data"].get("id") == spooled[-1]["back"]["id"]]
    assert len(joined) == 1
    assert joined[0]["data"]["spooled"]
    assert joined[0]["data"]["epoch"] > epoch

    again = pair.play("fallback_v1.yml")
    assert again.returncode == 0, again.output
    assert [version for version, _ in in_force(pair)] == ["v1", "v1"]
    assert "still gives V2" not in pair.play("status.yml").output
    stage1(pair)  # and forward, with what was stopped running again


@pytest.mark.full
def test_one_release_back_under_load(pair: Lab) -> None:
    stage1(pair)
    before = pair.cfn("one", "status")["release"]
    with loaded(pair) as reports:
        # Its smoke test would stop it, and the stage take it back: one that only shows later is meant here.
        degraded = ("-e", "artifact=degraded", "--skip-tags", "smoke")
        deployed = pair.play("stage1.yml", *OVERRIDE, *degraded)
        assert pair.cfn("one", "status")["release"] != before, deployed.output
        back = pair.play("rollback_release.yml")
        assert back.returncode == 0, back.output
    for host in HOSTS:
        assert pair.cfn(host, "status")["release"] == before
    assert "proved by its smoke test on 2 of 2 hosts" in words(back.output)
    assert last_record(pair)["data"]["release"] == before
    for report in reports.values():  # the degraded release loses agents of its own; no request is lost
        assert report["answered_once"] == report["sent"], report
    twice = pair.play("rollback_release.yml")
    assert twice.returncode != 0
    assert "There is no one release to go back to. Nothing was touched." in words(twice.output)


@pytest.mark.full
def test_a_rehearsal_measures_and_attests(pair: Lab) -> None:
    refused = pair.play("rehearse.yml")
    assert refused.returncode != 0
    assert "If it is meant: -e rehearse_in=lab. Nothing was touched." in words(refused.output)
    # The release that was degraded a moment ago may have opened a breaker. What it did until it had ended is
    # in the window, which is as short as that on the lab's scale: another share begins another one.
    stage1(pair, "-e", "traffic=9", "-e", "resume_by=a-test", "-e", "resume_reason=understood")
    stage1(pair)
    played = pair.play("rehearse.yml", "-e", "rehearse_in=lab")
    assert played.returncode == 0, played.output
    rehearsed = last_record(pair, "rehearsed")["data"]
    assert rehearsed["met"]
    assert rehearsed["fallback"]["pending"] == ["two"]
    assert rehearsed["again"]["proved"] == ["one", "two"]
    assert in_force(pair) == [("v2", 10)] * 2
    attested = last_record(pair, "attested")["data"]
    assert (attested["item"], attested["holds"]) == ("rollback_tested", True)
    assert pair.cfn("one", "lock show")["lock"] is None


@pytest.mark.full
def test_a_rehearsal_that_cannot_go_on_leaves_no_lock_and_attests_nothing(pair: Lab) -> None:
    stage1(pair)

    def attested() -> list[Any]:
        return [
            each
            for each in pair.cfn("one", "ledger show --last 200")["records"]
            if each["kind"] == "attested"
        ]

    before = attested()
    broken = "/run/systemd/system/cfn-workers.service.d"
    pair.run("one", f"mkdir -p {broken}; printf '[Service]\\nExecStartPre=/bin/false\\n' >{broken}/x.conf")
    pair.run("one", "systemctl daemon-reload")
    try:
        played = pair.play("rehearse.yml", "-e", "rehearse_in=lab")
    finally:
        pair.run(
            "one", f"rm -r {broken}; systemctl daemon-reload; systemctl reset-failed cfn-workers.service"
        )
    assert played.returncode == 2, played.output
    said = words(played.output)
    expected = "The rehearsal was ended, and nothing is attested. one: Run V2 again where it died"
    assert expected in said, played.output[-4_000:]
    assert "V2 DOES NOT RUN on one" in said
    assert pair.cfn("one", "lock show")["lock"] is None
    assert attested() == before
    stage1(pair, "-e", "resume_by=a-test", "-e", "resume_reason=understood")
    assert in_force(pair) == [("v2", 10)] * 2
