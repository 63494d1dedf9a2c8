"""After the rollback of stage 1: V1 serves everything, and V2 is there for the investigation."""

import json

from testinfra.host import Host

CFN = "/opt/cfn/current/bin/cfn"


def test_v1_is_what_the_router_runs(host: Host) -> None:
    status = json.loads(host.check_output(f"{CFN} status --json"))
    assert status["router_status"]["version"] == "v1"


def test_every_task_goes_to_v1(host: Host) -> None:
    for number in range(20):
        answer = json.loads(
            host.check_output(f"{CFN} coordinate --json --agents 1 after-rollback-{number}-$(date +%s%N)")
        )
        assert (answer["ordered"], answer["served"], answer["outcome"]) == ("v1", "v1", "done")


def test_the_engine_runs_with_empty_hands(host: Host) -> None:
    status = json.loads(host.check_output(f"{CFN} status --json"))
    assert status["engine"] == "running"
    assert status["engine_health"]["agents_active"] == 0
