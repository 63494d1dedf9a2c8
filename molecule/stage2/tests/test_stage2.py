"""What stage 2 leaves on a host: seven coordinators in a mesh, and half of the traffic."""

import json

import pytest
from testinfra.host import Host

CFN = "/opt/cfn/current/bin/cfn"


@pytest.mark.parametrize("number", range(1, 8))
def test_each_coordinator_runs_and_survives_a_reboot(host: Host, number: int) -> None:
    service = host.service(f"cfn-coordinator@{number}.service")
    assert service.is_running
    assert service.is_enabled


def test_the_router_runs_what_was_ordered(host: Host) -> None:
    found = json.loads(host.check_output(f"{CFN} status --json"))
    assert (found["topology"], found["max_agents"]) == ("hybrid", 300)
    assert (found["router_status"]["version"], found["router_status"]["traffic_pct"]) == ("v2", 50)
    assert found["engine"] == "running"


def test_three_hundred_agents_are_coordinated(host: Host) -> None:
    answer = host.run("/coordination/message-bus.sh coordinate 300 molecule-$(date +%s%N)")
    assert answer.rc == 0
    assert answer.stdout.startswith("delivery_rate=100.0 agents_coordinated=300 coordination_time_ms=")


def test_the_limits_are_the_stage_s(host: Host) -> None:
    assert host.check_output("systemctl show --value -p LimitNOFILE cfn-coordination.service") == "8192"
