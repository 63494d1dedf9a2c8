"""Operations on a running hybrid host: trials, failovers, capacity, cleanup, soak, stress; under load
where that is promised."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.end_to_end.conftest import CFN, Lab, make_lab

# `make test` has the molecule scenario failover; this is all of it.
pytestmark = [pytest.mark.lab, pytest.mark.full]

SPEC = """
defaults: {shm_mb: 1024, nofile: 20000}
hosts:
  - {name: one, groups: [cfn, control]}
"""
COORDINATORS = 7
STAGE_AGENTS = 300
LOAD = "load --json --rate 4 --seconds 600 --sizes 1:60,10:30,40:10 --deadline-ms 30000"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One host of stage 2, at 50 %."""
    folder = tmp_path_factory.mktemp("trials")
    (folder / "spec.yml").write_text(SPEC)
    for lab in make_lab("trials", folder / "spec.yml", folder / "i"):
        override = ("-e", "override_by=test", "-e", "override_reason=tried-elsewhere")
        deployed = lab.play("stage2.yml", *override)
        assert deployed.returncode == 0, deployed.output
        yield lab


@contextmanager
def loaded(lab: Lab) -> Iterator[dict[str, Any]]:
    """A load on the router while the block runs; afterwards its account."""
    report: dict[str, Any] = {}
    unit = "systemd-run --quiet --pipe --wait --collect --unit=cfn-load.service --uid=cfn --gid=cfn"
    with ThreadPoolExecutor() as pool:
        future = pool.submit(lab.run, "one", f"{unit} {CFN} {LOAD}", check=False)
        try:
            time.sleep(2)
            yield report
        finally:
            lab.run("one", "systemctl kill --signal=INT cfn-load.service", check=False)
        report.update(json.loads(future.result()))


def nothing_was_lost(report: dict[str, Any]) -> None:
    assert report["sent"] > 10, report
    assert report["answered_once"] == report["sent"], report
    assert (report["failed"], report["partial"]) == (0, 0), report


def records(lab: Lab, kind: str) -> list[dict[str, Any]]:
    found = lab.cfn("one", "ledger show --last 500")["records"]
    return [record for record in found if record["kind"] == kind]


def states(lab: Lab) -> list[str]:
    return [row["state"] for row in lab.cfn("one", "coordinators list")["coordinators"]]


def test_the_trials_that_disturb_nobody(host: Lab) -> None:
    played = host.play("stage2.yml", "-t", "trial")
    assert played.returncode == 0, played.output
    assert played.changed == 0
    for words in (
        "worker_imbalance_pct: ",
        "mesh_delivery_rate_pct: 100 pct, allowed at least 100 pct",
        "allowed below 1500000 kb",
        "messages_delivered_pct: 100 pct",
    ):
        assert words in played.output
    assert records(host, "trial")[-1]["data"]["hosts"]["one"]["coordinators_missing"] == 0
    assert host.cfn("one", "status")["engine_health"]["swarms"] == []


def test_one_trial_alone_says_what_is_wrong_and_what_to_do(host: Lab) -> None:
    host.run("one", f"{CFN} coordinators drain 2")
    try:
        alone = host.play("stage2.yml", "-t", "load_balance")
    finally:
        host.run("one", f"{CFN} coordinators return 2")
    assert alone.returncode != 0
    assert "coordinators_missing: 1 count, allowed at most 0 count" in alone.output
    assert "failover.yml -e coordinator=ID" in alone.output
    assert "Does every coordinator take its team" not in alone.output


def test_a_failover_test_attests_itself_and_only_while_there_is_little_to_do(host: Lab) -> None:
    quiet = host.play("stage2.yml", "-t", "failover_test")
    assert quiet.returncode == 0, quiet.output
    attested = records(host, "attested")[-1]["data"]
    assert (attested["item"], attested["holds"]) == ("coordinator_failover_tested", True)
    assert 0 <= host.cfn("one", "status")["engine_health"]["failover_time_s"] < 30
    with loaded(host) as report:
        time.sleep(25)  # demand is counted over a minute
        busy = host.play("stage2.yml", "-t", "failover_test")
    assert busy.returncode != 0
    assert "a failover test is allowed up to 1" in busy.output.replace("\n", " ").replace("  ", "")
    nothing_was_lost(report)


def test_a_planned_failover_under_load_loses_nothing(host: Lab) -> None:
    with loaded(host) as report:
        played = host.play("failover.yml", "-e", "coordinator=3", "-e", "reason='a test'")
    assert played.returncode == 0, played.output
    nothing_was_lost(report)
    done = records(host, "failover")[-1]["data"]
    assert (done["coordinator"], done["way"], done["ok"], done["reason"]) == (3, "planned", True, "a test")
    assert 0 < done["served_s"] < 30
    assert states(host) == ["up"] * COORDINATORS


def test_a_coordinator_that_was_killed_and_stays_down_is_brought_back(host: Lab) -> None:
    with loaded(host) as report:
        # It is killed, and nothing starts it again.
        host.run("one", "systemctl kill --signal=KILL cfn-coordinator@5; systemctl stop cfn-coordinator@5")
        played = host.play("failover.yml", "-e", "coordinator=5")
    assert played.returncode == 0, played.output
    nothing_was_lost(report)
    assert records(host, "failover")[-1]["data"]["way"] == "dead"
    assert states(host) == ["up"] * COORDINATORS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-e", "coordinator=9"), "coordinator 9 does not exist; there are 1, 2, 3, 4, 5, 6, 7"),
        (("-e", "coordinator=x"), "coordinator=x is refused"),
        (("-e", "coordinator=1", "-e", "host=nine"), "host=nine is refused: one run the engine"),
        ((), "coordinator= is refused"),
    ],
)
def test_a_failover_that_cannot_be_meant(host: Lab, arguments: tuple[str, ...], words: str) -> None:
    played = host.play("failover.yml", *arguments)
    assert played.returncode != 0
    assert words in re.sub(r"\s+", " ", played.output)
    assert states(host) == ["up"] * COORDINATORS


def test_a_restart_under_load(host: Lab) -> None:
    played = host.play("stage2.yml", "-t", "coordinator_restart")
    assert played.returncode == 0, played.output
    assert "every request was answered once and in full" in re.sub(r"\s+", " ", played.output)


def test_capacity_is_changed_live_and_what_is_larger_goes_to_v1(host: Lab) -> None:
    starts = host.run("one", "systemctl show -p MainPID --value cfn-coordination cfn-router")
    with loaded(host) as report:
        predicted = host.play("capacity.yml", "-e", "agents=60", "--check")
        assert predicted.changed == 1, predicted.output
        fewer = host.play("capacity.yml", "-e", "agents=60", "-e", "retention_s=600")
        assert fewer.returncode == 0, fewer.output
        large = host.cfn("one", f"coordinate --agents 61 large-{time.time_ns()}", check=False)
        back = host.play("capacity.yml", "-e", "agents=default", "-e", "retention_s=default")
    nothing_was_lost(report)
    assert (large["served"], large["reason"], large["outcome"]) == ("v1", "over_capacity", "done")
    assert back.returncode == 0, back.output
    assert host.cfn("one", "status")["engine_health"]["max_agents"] == STAGE_AGENTS
    assert host.play("capacity.yml", "-e", "agents=default").changed == 0
    assert starts == host.run("one", "systemctl show -p MainPID --value cfn-coordination cfn-router")
    refused = host.play("capacity.yml", "-e", "agents=301")
    assert refused.returncode != 0
    assert "1 to 300 are allowed in stage2" in re.sub(r"\s+", " ", refused.output)


def test_cleanup_says_what_it_would_remove_and_removes_it(host: Lab) -> None:
    host.run("one", f"{CFN} coordinate --direct v2 --agents 3 to-clean-{time.time_ns()}")
    time.sleep(2)
    predicted = host.play("cleanup.yml", "-e", "retention_s=1", "--check")
    assert "would remove 1 requests" in re.sub(r"\s+", " ", predicted.output), predicted.output
    cleaned = host.play("cleanup.yml", "-e", "retention_s=1")
    assert cleaned.returncode == 0, cleaned.output
    found = records(host, "cleaned")[-1]["data"]["hosts"]["one"]
    assert found["removed"]["requests"] >= 1
    assert found["freed_bytes"] > 0


def test_a_soak_outlives_its_controller_and_is_recorded_once(host: Lab) -> None:
    started = host.play("soak.yml", "-e", "length=1m")
    assert started.returncode == 0, started.output
    assert "running" in started.output
    asked = host.play("soak.yml", "-e", "length=1m")  # no controller was there in between
    assert asked.returncode == 0, asked.output
    deadline_s = time.monotonic() + 300
    while host.cfn("one", "soak status")["state"] == "running":
        assert time.monotonic() < deadline_s
        time.sleep(2)
    told = host.play("soak.yml", "-e", "state=status")
    assert told.returncode == 0, told.output
    account = records(host, "soaked")[-1]["data"]["hosts"]["one"]
    assert account["ok"], account
    assert account["load"]["answered_once"] == account["load"]["sent"] == 12
    assert {"memory_kb", "fd_count", "tmpfs_used_mb"} <= set(account["first"]) & set(account["last"])
    host.play("soak.yml", "-e", "state=status")
    assert len(records(host, "soaked")) == 1


def test_stress_is_refused_where_nobody_named_the_environment(host: Lab) -> None:
    for named in ((), ("-e", "stress_environment=production")):
        played = host.play("stress.yml", *named)
        assert played.returncode != 0
        assert "only by name, -e stress_environment=lab" in re.sub(r"\s+", " ", played.output)
    production = PROJECT / "inventories/production/group_vars/all/environment.yml"
    assert "cfn_environment_kind: production" in production.read_text()


def test_a_short_stress_leaves_nothing_behind(host: Lab) -> None:
    named = ("-e", "stress_environment=lab")
    played = host.play("stress.yml", *named, "-t", "cascade,message_storm")
    assert played.returncode == 0, played.output
    found = records(host, "stressed")[-1]["data"]["found"]
    assert set(found) == {"cascade", "message_storm"}
    assert found["cascade"]["agents_not_done"] == 0
    assert states(host) == ["up"] * COORDINATORS
    assert host.cfn("one", "status")["engine_health"]["swarms"] == []


def test_a_stress_that_is_ended_halfway_is_cleaned_up(host: Lab) -> None:
    with ThreadPoolExecutor() as pool:
        playing = pool.submit(host.play, "stress.yml", "-e", "stress_environment=lab", "-t", "rapid_cycles")
        deadline_s = time.monotonic() + 120
        while host.run("one", "systemctl is-active cfn-stress || true").strip() != "active":
            assert time.monotonic() < deadline_s
            time.sleep(0.5)
        host.run("one", "systemctl kill --signal=KILL cfn-stress")
        played = playing.result()
    assert played.returncode != 0
    assert host.cfn("one", "status")["engine_health"]["swarms"] == []
