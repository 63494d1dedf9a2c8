"""The end of V1 on real hosts: what keeps it from ending, a dead controller, and every way back.

The tests follow one another: each begins where the one before it ended.
"""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT
from tests.end_to_end.conftest import CFN, Lab, make_lab

# `make test` has the molecule scenario decommission; this is all of it.
pytestmark = [pytest.mark.lab, pytest.mark.full]

HOSTS = ("one", "two")
REFUSED = 20
OVERRIDE = ("-e", "override_by=ann", "-e", "override_reason=test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the controller keeps V1's archives."""
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts with stage 1, and a fresh one."""
    spec = PROJECT / "tests/end_to_end/ended.yml"
    for lab in make_lab("ended", spec, tmp_path_factory.mktemp("ended") / "i"):
        first = lab.play("stage1.yml")
        assert first.returncode == 0, first.output
        yield lab


@pytest.fixture(scope="module")
def arguments(folder: Path) -> tuple[str, ...]:
    return ("-e", f"cfn_v1_archive_dir={folder}")


def words(text: str) -> str:
    return " ".join(text.split())


def newest(lab: Lab, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.cfn("one", "ledger", "show", "--kind", kind, "--last", "1")["records"][0]
    return found


def v1_there(lab: Lab, host: str) -> bool:
    return lab.run(host, "ls -d /opt/cfn-v1 2>/dev/null", check=False) != ""


def test_below_all_of_the_traffic_every_host_is_named_and_nothing_changed(
    ended: Lab, arguments: tuple[str, ...]
) -> None:
    played = ended.play("decommission_v1.yml", *arguments, *OVERRIDE)
    assert played.returncode == REFUSED
    for host in HOSTS:
        assert f"{host}: it runs v2 at 10 %; V2 at 100 % is required" in words(played.output)
    assert played.changed == 0
    only = ended.play("decommission_v1.yml", *arguments, *OVERRIDE, "--limit", "one")
    assert "two: unreachable, or not in this run" in words(only.output)


def test_before_two_weeks_it_says_what_is_missing(ended: Lab, arguments: tuple[str, ...]) -> None:
    for host in HOSTS:
        ended.run(host, f"{CFN} traffic --version v2 --percent 100 --epoch 50")
    assert ended.play("gate.yml", "-e", "stage=epic").returncode != 0
    played = ended.play("decommission_v1.yml", *arguments)
    assert played.returncode == REFUSED
    said = words(played.output)
    assert "epic at 100 % has no PASS in this ledger; its last verdict is INCONCLUSIVE" in said
    assert "its window is full at" in said
    assert played.changed == 0
    assert all(v1_there(ended, host) for host in HOSTS)


def test_a_rehearsal_restores_beside_v1_and_attests_it(ended: Lab, arguments: tuple[str, ...]) -> None:
    played = ended.play("restore_v1.yml", *arguments, "-e", "rehearse=true")
    assert played.returncode == 0, played.output
    attested = newest(ended, "attested")
    assert (attested["stage"], attested["data"]["item"]) == ("decommission", "restoration_tested")
    assert attested["data"]["holds"] is True
    assert "proved by a real coordination on 2 of 2 hosts" in attested["data"]["note"]
    for host in HOSTS:
        assert ended.run(host, "ls -d /var/tmp/cfn-*", check=False) == ""
        assert ended.cfn(host, "status")["v1_enabled"] is True


def test_a_controller_that_is_killed_in_the_middle_is_taken_up(
    ended: Lab, arguments: tuple[str, ...], folder: Path
) -> None:
    argv = ended.argv("decommission_v1.yml", *arguments, *OVERRIDE)
    with subprocess.Popen(
        argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as controller:
        assert controller.stdout is not None
        seen = next((line for line in controller.stdout if "[Prove that V2 serves alone]" in line), "")
        controller.send_signal(signal.SIGKILL)
    assert seen
    assert (ended.cfn("one", "status")["v1_enabled"], ended.cfn("two", "status")["v1_enabled"]) == (
        False,
        True,
    )
    ended.run("one", "rm -r /opt/cfn-v1/bin")  # as if it had been killed while it removed

    played = ended.play("decommission_v1.yml", *arguments, *OVERRIDE)
    assert played.returncode == 0, played.output
    record = newest(ended, "decommissioned")
    for host in HOSTS:
        status = ended.cfn(host, "status")
        assert (status["v1_enabled"], status["traffic_pct"], status["config_problem"]) == (False, 100, "")
        assert not v1_there(ended, host)
        kept = record["data"]["archives"][host]
        assert (folder / kept["name"]).is_file()
        assert kept["sha256"] in ended.run("one", f"sha256sum /var/lib/cfn-v1-archive/{kept['name']}")
    assert ended.run("two", "ls -d /var/lib/cfn-v1-archive 2>&1", check=False).startswith("ls: cannot access")
    again = ended.play("decommission_v1.yml", *arguments)
    assert (again.returncode, again.changed) == (0, 0), again.output
    assert f"(record {record['sequence']})" in again.output


def test_without_v1_what_it_would_have_served_is_refused_in_words(ended: Lab) -> None:
    large = ended.run("one", f"{CFN} coordinate --agents 101 large-1 2>&1; echo rc=$?", check=False)
    assert "there is no V1 (CFN_V1_ENABLED is false), and V2 takes at most 100 agents" in large
    assert "rc=0" not in large
    back = ended.run("one", f"{CFN} traffic --version v1 2>&1; echo rc=$?", check=False)
    assert "restore V1 first" in back
    ended.run("one", "systemctl stop cfn-coordination.service cfn-workers.service")
    try:
        lost = ended.run("one", f"{CFN} coordinate --agents 1 lost-1 2>&1; echo rc=$?", check=False)
        assert "there is no V1 (CFN_V1_ENABLED is false)" in lost
        assert "rc=0" not in lost
    finally:
        ended.run("one", "systemctl start cfn-workers.service cfn-coordination.service")


def test_a_damaged_archive_is_refused_before_anything_is_touched(
    ended: Lab, arguments: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    kept = newest(ended, "decommissioned")["data"]["archives"]["one"]
    damaged = tmp_path / kept["name"]
    data = bytearray((folder / kept["name"]).read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    played = ended.play("restore_v1.yml", *arguments, "-e", f"archive={damaged}")
    assert played.returncode == REFUSED
    said = words(played.output)
    assert f"{damaged} is damaged: its SHA-256 is " in said
    assert f"expected {kept['sha256']}" in said
    assert played.changed == 0
    assert not any(v1_there(ended, host) for host in HOSTS)
    for wrong in (("archive=/no/such/file",), ("traffic=75",)):
        refused = ended.play("restore_v1.yml", *arguments, "-e", *wrong)
        assert refused.returncode == REFUSED
        assert "Nothing was touched" in words(refused.output)


def test_v1_comes_back_also_from_the_control_hosts_copies(
    ended: Lab, arguments: tuple[str, ...], folder: Path
) -> None:
    archives = newest(ended, "decommissioned")["data"]["archives"]
    for kept in archives.values():
        (folder / kept["name"]).unlink()
    started_s = time.monotonic()
    played = ended.play("restore_v1.yml", *arguments)
    print(f"restored in {time.monotonic() - started_s:.1f} s")
    assert played.returncode == 0, played.output
    restored = newest(ended, "restored")["data"]
    assert (restored["proved"], restored["within"]) == (list(HOSTS), True)
    assert restored["seconds"] < restored["objective_s"] == 3600
    for host in HOSTS:
        status = ended.cfn(host, "status")
        assert (status["version"], status["v1_enabled"]) == ("v1", True)
        answer = ended.cfn(host, "coordinate", "--agents", "2", f"back-{host}-{time.time_ns()}")
        assert (answer["served"], answer["outcome"]) == ("v1", "done")
    again = ended.play("restore_v1.yml", *arguments)
    assert (again.returncode, again.changed) == (0, 0), again.output


def test_a_fresh_host_gets_its_v1_from_another_ones_archive(
    ended: Lab, arguments: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    grown = tmp_path / "grown.yml"
    grown.write_text("all: {children: {cfn: {hosts: {fresh: {}}}}}\n")
    archive = folder / newest(ended, "decommissioned")["data"]["archives"]["two"]["name"]
    played = ended.play(
        "restore_v1.yml", *arguments, "-i", str(grown), "--limit", "fresh", "-e", f"archive={archive}"
    )
    assert played.returncode == 0, played.output
    assert "fresh: no release is installed, so V1 is proved by itself" in words(played.output)
    line = ended.run("fresh", "/opt/cfn-v1/bin/coordinate 3 by-hand </dev/null").splitlines()[-1]
    assert line.startswith("delivery_rate=100.0 agents_coordinated=3")
