"""The whole ladder under one load: stage 1, 2, 3 at 75 and 100 %, the end of V1, and its way back.

What it shows is printed: `pytest -s` has the screen of status.yml at each rung, and the load's account.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.end_to_end.conftest import Lab, Played, make_lab
from tests.end_to_end.test_stage1 import HOSTS, assert_nothing_was_lost, loaded

pytestmark = [pytest.mark.lab, pytest.mark.full]

# Enough for the proofs of the lab's weeks, half a minute each. 28 agents are the fewest that use the mesh;
# 50 of such requests on V2 are wanted in each of those weeks, also at 50 %.
LOAD = "load --json --rate 12 --seconds 5400 --sizes 1:72,10:3,28:25 --deadline-ms 30000"
RUNGS = (("stage1", "10"), ("stage2", "50"), ("stage3", "75"), ("stage3", "100"))
PATIENCE_S = 600


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts that can take every stage; V1 serves, and V2 has the least that stage 1 takes."""
    spec = PROJECT / "tests/end_to_end/large.yml"
    for lab in make_lab("ladder", spec, tmp_path_factory.mktemp("ladder") / "i"):
        done(lab.play("stage1.yml", "-e", "traffic=1"))
        yield lab


def done(played: Played) -> Played:
    assert played.returncode == 0, played.output
    return played


def message(played: Played) -> str:
    """What the last message of a playbook said."""
    return played.output.rpartition("msg:")[2].partition("PLAY RECAP")[0].rstrip()


def wait_for_pass(lab: Lab, stage: str) -> None:
    """Ask the gate until it says PASS. Not enough time or evidence is asked again; FAIL is no PASS.

    Where a failover is wanted and none has happened, a coordinator of each host is failed over.
    """
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        played = lab.play("gate.yml", "-e", f"stage={stage}")
        if played.returncode == 0:
            return
        assert "FAIL  lab" not in played.output, played.output
        if "failover_time_s: nothing to measure happened yet" in played.output:
            for host in HOSTS:
                done(lab.play("failover.yml", "-e", "coordinator=3", "-e", f"host={host}"))
        assert time.monotonic() < ends_s, played.output
        time.sleep(3)


def show(lab: Lab, rung: str) -> None:
    print(f"\n== {rung}\n{message(done(lab.play('status.yml')))}", flush=True)


def test_every_rung_and_back_under_one_load_loses_nothing(tall: Lab, tmp_path: Path) -> None:
    folder = ("-e", f"cfn_v1_archive_dir={tmp_path}")
    with loaded(tall, LOAD) as reports:
        for stage, traffic in RUNGS:
            done(tall.play(f"{stage}.yml", "-e", f"traffic={traffic}"))
            wait_for_pass(tall, stage)
            show(tall, f"{stage} at {traffic} %")

        early = tall.play("decommission_v1.yml", *folder)
        assert early.returncode != 0
        assert "epic at 100 % has no PASS in this ledger" in early.output, early.output
        for host in HOSTS:  # the two weeks have to have seen what the rollout is for
            tall.run(host, "/coordination/message-bus.sh init 500 && sleep 3")
            tall.run(host, "/coordination/message-bus.sh shutdown")
        wait_for_pass(tall, "epic")

        ended = done(tall.play("decommission_v1.yml", *folder))
        show(tall, f"V1 decommissioned\n{message(ended)}")
        time.sleep(5)
        restored = done(tall.play("restore_v1.yml", *folder))
        show(tall, f"V1 restored\n{message(restored)}")
        time.sleep(5)

    for host, report in reports.items():
        print(f"{host}: {json.dumps(report, indent=1)}")
    assert_nothing_was_lost(reports)
    for report in reports.values():
        ordered = {share["ordered_pct"] for share in report["generations"].values()}
        assert {1.0, 10.0, 50.0, 75.0, 100.0, 0.0} <= ordered
        assert report["by_served"]["v1"] > 0
