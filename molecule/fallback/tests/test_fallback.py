"""After a fall back with V2 dead on one host: V1 serves everywhere, and nobody restarted what is dead."""

import json
from typing import Any

from testinfra.host import Host

CFN = "/opt/cfn/current/bin/cfn"


def read(host: Host, command: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.check_output(f"{CFN} {command} --json"))
    return found


def test_v1_is_what_the_router_runs(host: Host) -> None:
    status = read(host, "status")
    assert (status["version"], status["router_status"]["version"]) == ("v1", "v1")
    assert status["router_status"]["breaker"]["state"] == "closed"


def test_every_task_goes_to_v1(host: Host) -> None:
    for number in range(10):
        answer = json.loads(
            host.check_output(f"{CFN} coordinate --json --agents 2 after-fallback-{number}-$(date +%s%N)")
        )
        assert (answer["served"], answer["outcome"], answer["fallback"]) == ("v1", "done", None)


def test_v2_is_left_as_it_was_for_the_investigation(host: Host) -> None:
    running = host.service("cfn-coordination.service").is_running
    assert running is (host.check_output("hostname") != "two")


def test_an_order_from_before_is_refused(host: Host) -> None:
    epoch = read(host, "status")["epoch"]
    assert epoch > 1_700_000_000  # the time of the decision
    late = host.run(f"{CFN} traffic --version v2 --percent 10 --epoch {epoch - 1}")
    assert late.rc == 5
    assert "is refused" in late.stderr


def test_the_ledger_says_how_long_it_took(host: Host) -> None:
    if host.check_output("hostname") != "one":  # the control host keeps it
        assert not host.file("/var/lib/cfn/ledger/ledger.jsonl").exists
        return
    records = read(host, "ledger show --last 20")["records"]
    last = [record for record in records if record["kind"] == "rolled_back"][-1]["data"]
    assert sorted(last["proved"]) == ["one", "two"]
    assert last["met"]
    assert 0 < last["seconds"] <= last["objective_s"] == 300


def test_nothing_waits_in_the_spool(host: Host) -> None:
    assert json.loads(host.check_output(f"{CFN} spool show"))["lines"] == []
