"""What stage 1 leaves on a host, seen from outside Ansible."""

import json
from typing import Any

import pytest
from testinfra.host import Host

CFN = "/opt/cfn/current/bin/cfn"

UNITS = (
    "cfn-coordination.service",
    "cfn-workers.service",
    "cfn-router.socket",
    "cfn-router.service",
    "cfn-metrics.service",
    "cfn-cleanup.timer",
)


@pytest.mark.parametrize("unit", UNITS)
def test_units_run_and_survive_a_reboot(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled


@pytest.mark.parametrize(
    ("path", "user", "group", "mode"),
    [
        ("/etc/cfn", "root", "cfn", 0o750),
        ("/etc/cfn/config.sh", "root", "cfn", 0o640),
        ("/run/cfn", "cfn", "cfn", 0o750),
        ("/dev/shm/cfn", "cfn", "cfn", 0o750),
        ("/var/log/cfn", "cfn", "cfn", 0o750),
        ("/run/cfn/conductor.sock", "cfn", "cfn", 0o660),
        ("/run/cfn/router.sock", "cfn", "cfn", 0o660),
    ],
)
def test_nothing_is_open_to_others(host: Host, path: str, user: str, group: str, mode: int) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == (user, group, mode)


def test_the_release_belongs_to_root_and_is_in_force(host: Host) -> None:
    assert host.file("/opt/cfn/current").is_symlink
    assert host.file("/coordination").linked_to.startswith("/opt/cfn/releases/")
    assert host.run("find /opt/cfn/releases -not -user root -o -perm /022 -not -type l").stdout == ""


def test_no_daemon_runs_as_root(host: Host) -> None:
    assert set(host.check_output("ps -o user= -C cfn").split()) == {"cfn"}


def status(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.check_output(f"{CFN} status --json"))
    return found


def test_the_router_runs_what_was_ordered(host: Host) -> None:
    found = status(host)
    assert (found["version"], found["traffic_pct"]) == ("v2", 10)
    assert found["engine"] == "running"
    assert found["router_status"]["traffic_pct"] == 10
    assert not found["config_problem"]


def test_a_hundred_agents_are_coordinated(host: Host) -> None:
    answer = host.run("/coordination/message-bus.sh coordinate 100 molecule-$(date +%s%N)")
    assert answer.rc == 0
    assert answer.stdout.startswith("delivery_rate=100.0 agents_coordinated=100 coordination_time_ms=")


@pytest.mark.parametrize("count", ["0", "-1", "101", "x"])
def test_counts_that_the_stage_does_not_allow_are_refused(host: Host, count: str) -> None:
    answer = host.run(f"/coordination/message-bus.sh coordinate {count} refused-{count.strip('-')}")
    assert answer.rc in (2, 5)
    assert answer.stdout == ""
    assert count in answer.stderr


def test_a_smoke_test_by_hand(host: Host) -> None:
    bus = "/coordination/message-bus.sh"
    assert host.run(f"{bus} init 10").rc == 0
    assert host.run(f"{bus} broadcast test:ping").rc == 0
    acknowledged = f"{bus} status | grep -c test:ping:ack | grep -qx 10"
    assert host.run(f"for i in $(seq 10); do {acknowledged} && exit 0; sleep 0.1; done; exit 1").rc == 0
    assert host.run(f"{bus} shutdown").rc == 0
    assert "agent-1" not in host.run(f"{bus} status").stdout


def test_samples_are_taken(host: Host) -> None:
    latest = json.loads(host.check_output("cat /dev/shm/cfn/metrics/latest.json"))
    assert latest["v"] == 1
    assert latest["active_agents"] >= 0
    assert latest["fd_count"] > 0


def test_an_edit_by_hand_takes_effect_and_back(host: Host) -> None:
    config = "/etc/cfn/config.sh"
    for version in ("v1", "v2"):
        host.check_output(
            f"sed -i 's/^CFN_COORDINATION_VERSION=.*/CFN_COORDINATION_VERSION=\"{version}\"/' {config}"
        )
        seen = host.run(
            f'for i in $(seq 20); do {CFN} status --json | grep -q \'"version": "{version}"\' && '
            f"{CFN} traffic --json | grep -q '\"confirmed\": true' && exit 0; sleep 0.1; done; exit 1"
        )
        assert seen.rc == 0
