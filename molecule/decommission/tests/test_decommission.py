"""After the end of V1: V2 serves alone, nothing of V1 is left, and its archive is off the host."""

import json
from typing import Any

import pytest
from testinfra.host import Host

CFN = "/opt/cfn/current/bin/cfn"


def status(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(host.check_output(f"{CFN} status --json"))
    return found


def test_the_router_knows_of_no_v1(host: Host) -> None:
    found = status(host)
    assert (found["version"], found["traffic_pct"], found["v1_enabled"]) == ("v2", 100, False)
    assert found["router_status"]["v1"]["enabled"] is False
    assert found["config_problem"] == ""


def test_v1s_files_are_gone(host: Host) -> None:
    assert not host.file("/opt/cfn-v1").exists


@pytest.mark.parametrize("agents", ["1", "10", "100"])
def test_v2_serves_alone(host: Host, agents: str) -> None:
    answer = json.loads(
        host.check_output(f"{CFN} coordinate --json --agents {agents} alone-{agents}-$(date +%s%N)")
    )
    assert (answer["served"], answer["outcome"]) == ("v2", "done")


def test_a_request_above_the_stage_is_refused_in_words(host: Host) -> None:
    refused = host.run(f"{CFN} coordinate --agents 101 above-$(date +%s%N)")
    assert refused.rc != 0
    assert "there is no V1" in refused.stderr


def test_nobody_orders_a_v1_that_is_gone(host: Host) -> None:
    refused = host.run(f"{CFN} traffic --version v1")
    assert refused.rc != 0
    assert "restore V1 first" in refused.stderr
    assert status(host)["version"] == "v2"


def test_the_archive_is_where_the_ledger_has_it(host: Host) -> None:
    if not host.file("/var/lib/cfn/ledger/ledger.jsonl").exists:
        assert not host.file("/var/lib/cfn-v1-archive").exists
        return
    shown = json.loads(host.check_output(f"{CFN} ledger show --json --kind decommissioned --last 1"))
    archives = shown["records"][0]["data"]["archives"]
    assert len(archives) == 2
    for kept in archives.values():
        file = host.file(f"/var/lib/cfn-v1-archive/{kept['name']}")
        assert (file.sha256sum, file.user, file.mode) == (kept["sha256"], "root", 0o600)
