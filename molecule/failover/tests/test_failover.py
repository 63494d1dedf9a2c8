"""After a failover: every coordinator is up, the load is balanced, and the ledger knows."""

import json

import pytest
from testinfra.host import Host

CFN = "/opt/cfn/current/bin/cfn"


def test_every_coordinator_is_up(host: Host) -> None:
    listed = json.loads(host.check_output(f"{CFN} coordinators list --json"))
    assert [row["state"] for row in listed["coordinators"]] == ["up"] * 7


def test_the_mesh_delivers_everything(host: Host) -> None:
    limit = {"compare": "ge", "threshold": 100, "unit": "pct"}
    limits = json.dumps({"mesh_delivery_rate_pct": limit, "worker_delivery_rate_pct": limit})
    command = f"echo '{limits}' | {CFN} trial mesh_reliability --agents 56 --rounds 3 --json"
    assert json.loads(host.check_output(command))["ok"]


def test_no_swarm_is_left(host: Host) -> None:
    status = json.loads(host.check_output(f"{CFN} status --json"))
    assert status["engine_health"]["swarms"] == []


def test_it_is_in_the_ledger_with_its_time(host: Host) -> None:
    if not host.file("/var/lib/cfn/ledger/ledger.jsonl").exists:
        pytest.skip("the ledger is on the control host")
    records = json.loads(host.check_output(f"{CFN} ledger show --json --last 50"))["records"]
    done = [record["data"] for record in records if record["kind"] == "failover"][-1]
    assert (done["coordinator"], done["way"], done["ok"]) == (3, "planned", True)
    assert 0 < done["served_s"] < 30
