"""What stage 3 leaves on a host: 708 agents, and three quarters of the traffic."""

import json

from testinfra.host import Host

CFN = "/opt/cfn/current/bin/cfn"


def test_the_router_runs_what_was_ordered(host: Host) -> None:
    found = json.loads(host.check_output(f"{CFN} status --json"))
    assert (found["topology"], found["max_agents"]) == ("hybrid", 708)
    assert (found["router_status"]["version"], found["router_status"]["traffic_pct"]) == ("v2", 75)


def test_708_agents_are_coordinated(host: Host) -> None:
    answer = host.run("/coordination/message-bus.sh coordinate 708 molecule-$(date +%s%N)")
    assert answer.rc == 0
    assert answer.stdout.startswith("delivery_rate=100.0 agents_coordinated=708 coordination_time_ms=")


def test_the_limits_are_the_stage_s(host: Host) -> None:
    assert host.check_output("systemctl show --value -p LimitNOFILE cfn-coordination.service") == "16384"
    assert int(host.check_output("df --output=size -m /dev/shm | tail -1")) >= 1024
