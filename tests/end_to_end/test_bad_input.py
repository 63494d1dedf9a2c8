"""What cannot be meant, or cannot work, stops before anything is touched."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.end_to_end.conftest import Lab, make_lab

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def unfit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One host for each way of not being fit, and a fit one."""
    spec = PROJECT / "tests/end_to_end/unfit.yml"
    for lab in make_lab("unfit", spec, tmp_path_factory.mktemp("unfit") / "i"):
        subprocess.run(["lab", "--name", lab.name, "off", "gone"], check=True, capture_output=True)
        yield lab


def test_all_problems_of_all_hosts_in_one_run_and_nothing_changed(unfit: Lab) -> None:
    played = unfit.play("stage1.yml")
    assert played.returncode == 20
    for words in (
        "smallshm: shm_total_mb: found 64 MB, required at least 256 MB",
        "fewfiles: nofile: found 1024 files, required at least 4096 files",
        "oldbash: bash_version: found 3.2",
        "gone: unreachable",
    ):
        assert words in played.output, played.output
    assert "\n        fit: " not in played.output
    assert played.changed == 0
    for host in ("fit", "smallshm", "fewfiles", "oldbash"):
        assert unfit.run(host, "ls -d /opt/cfn /opt/cfn-v1 /etc/cfn 2>/dev/null", check=False) == ""


@pytest.mark.parametrize("traffic", ["175", "abc", "", "75", "0", "10.5"])
def test_traffic_that_the_stage_does_not_take(unfit: Lab, traffic: str) -> None:
    played = unfit.play("stage1.yml", "-e", f"traffic={traffic}")
    assert played.returncode == 20
    assert f"traffic={traffic} is refused: stage1 takes a percentage from 1 to 10" in " ".join(
        played.output.split()
    )
    assert "Preflight" not in played.output


@pytest.mark.parametrize("limit", ["fit", "fit,localhost"])
def test_a_part_of_the_hosts(unfit: Lab, limit: str) -> None:
    played = unfit.play("stage1.yml", "--limit", limit)
    assert (played.returncode, played.changed) == (20, 0), played.output
    assert f"--limit {limit} is refused: a stage takes every host" in " ".join(played.output.split())
    assert "Preflight" not in played.output


@pytest.mark.parametrize("playbook", ["stage1", "gate", "fallback_v1", "rollback_stage2", "status"])
def test_an_inventory_without_hosts_says_what_to_do(tmp_path: Path, playbook: str) -> None:
    (tmp_path / "hosts.yml").write_text("all: {children: {cfn: {hosts: {}}, control: {hosts: {}}}}\n")
    (tmp_path / "group_vars").symlink_to(PROJECT / "inventories/lab/group_vars")
    played = Lab("none", tmp_path).play(f"{playbook}.yml")
    assert played.returncode == 20, played.output
    assert "make lab-up" in played.output


def test_a_reason_that_lost_its_quotes_is_not_cut(unfit: Lab) -> None:
    played = unfit.play("hold.yml", "-e", "state=held", "-e", "by=ada", "-e", "reason=christmas holidays")
    assert (played.returncode, played.changed) == (20, 0), played.output
    assert "'holidays' belongs to no variable" in played.output


@pytest.mark.parametrize("count", [0, 2])
def test_an_inventory_with_no_control_host_or_two(tmp_path: Path, count: int) -> None:
    control = ", ".join(f"c{number}: {{}}" for number in range(count))
    (tmp_path / "hosts.yml").write_text(
        f"all: {{children: {{cfn: {{hosts: {{a: {{}}}}}}, control: {{hosts: {{{control}}}}}}}}}\n"
    )
    (tmp_path / "group_vars").symlink_to(PROJECT / "inventories/lab/group_vars")
    played = Lab("none", tmp_path).play("stage2.yml")
    assert played.returncode == 20
    assert f"{count} hosts in the group control" in " ".join(played.output.split())


@pytest.mark.parametrize(
    ("stage", "traffic"), [("stage2", "10"), ("stage2", "51"), ("stage3", "50"), ("stage3", "101")]
)
def test_traffic_of_another_stage(pair: Lab, stage: str, traffic: str) -> None:
    played = pair.play(f"{stage}.yml", "-e", f"traffic={traffic}")
    assert played.returncode == 20
    assert f"traffic={traffic} is refused: {stage} takes" in " ".join(played.output.split())


def test_a_host_of_another_environment(pair: Lab) -> None:
    played = pair.play("stage1.yml", "-e", "cfn_environment=elsewhere")
    assert played.returncode == 20
    words = " ".join(played.output.split())
    for host in ("one", "two"):
        assert f"{host}: environment: found lab, required elsewhere" in words


def test_a_stage_out_of_order_and_a_pause_without_a_reason(pair: Lab) -> None:
    played = pair.play("stage2.yml", "-e", "override_by=ada")
    assert (played.returncode, played.changed) == (20, 0)
    assert "both override_by and override_reason" in " ".join(played.output.split())
    played = pair.play("stage3.yml")
    assert (played.returncode, played.changed) == (20, 0)
    assert "stage2 at 50 % has no PASS" in " ".join(played.output.split())
    assert pair.play("hold.yml", "-e", "state=held", "-e", "by=ada").returncode == 20
    assert pair.play("gate.yml", "-e", "stage=stage9").returncode == 20


def test_a_configuration_that_is_refused_is_not_deployed(pair: Lab) -> None:
    before = pair.run("one", "cat /etc/cfn/config.sh")
    for extra, words in (
        ("{CFN_MAX_AGENT: 7}", "unknown key CFN_MAX_AGENT"),
        ("{CFN_EPOCH: 7}", "CFN_EPOCH is set twice"),
        ("{CFN_MAX_INBOX: 0}", "a whole number from 1 to"),
        ('{CFN_RETENTION_TIME: "$(id)"}', "a dollar sign is refused"),
    ):
        played = pair.play("stage1.yml", "-e", f"{{engine_extra_config: {extra}}}")
        assert played.returncode != 0
        assert words in " ".join(played.output.split()), played.output
        assert pair.run("one", "cat /etc/cfn/config.sh") == before


def test_ids_and_payloads_at_the_message_bus(pair: Lab) -> None:
    bus = "/coordination/message-bus.sh"
    for task in ("../x", "a/b", "a..b", '$(printf "a\\nb")', '$(printf "%010240d" 1)'):
        assert "rc=2" in pair.run("one", f'{bus} coordinate 1 "{task}"; echo rc=$?')
    pair.run("one", f"{bus} init 2")
    try:
        big = '"$(head -c 65537 /dev/zero | tr "\\0" x)"'
        answer = pair.run("one", f"{bus} send agent-1 agent-2 note {big} 2>&1; echo rc=$?")
        assert "65536" in answer, answer
        assert "rc=0" not in answer
        for agent in ("../x", "a/b", "a..b"):
            assert "rc=2" in pair.run("one", f"{bus} send agent-1 {agent} note hello; echo rc=$?")
    finally:
        pair.run("one", f"{bus} shutdown")


def test_a_router_that_nobody_answers_for(pair: Lab) -> None:
    pair.run("two", "systemctl stop cfn-router.socket cfn-router.service")
    try:
        assert "rc=3" in pair.run(
            "two", "/opt/cfn/current/bin/cfn coordinate --when-down fail --agents 1 nobody-1; echo rc=$?"
        )
        played = pair.play("stage1.yml", "--tags", "always,traffic", "-e", "traffic=7")
        assert played.returncode != 0
    finally:
        pair.run("two", "systemctl start cfn-router.socket cfn-router.service")


def test_the_gate_never_passes_on_damaged_records(pair: Lab) -> None:
    events = "/var/log/cfn/coordination-events.jsonl"
    samples = "/var/log/cfn/v2-metrics.jsonl"
    for damage in (
        f"mv {events} {events}.kept",
        f"mv {samples} {samples}.kept; systemctl stop cfn-metrics",
        f"cp -p {samples} {samples}.kept; sed -i s/[0-9]/NaN/g {samples}",
        f"cp -p {events} {events}.kept; truncate -s -7 {events}; : > {samples}",
    ):
        pair.run("two", damage)
        try:
            played = pair.play("gate.yml")
            assert played.returncode != 0
            assert "PASS  lab" not in played.output
        finally:
            pair.run("two", f"for f in {events} {samples}; do [ ! -e $f.kept ] || mv $f.kept $f; done; "
                            "systemctl start cfn-metrics; systemctl reload cfn-router")  # fmt: skip
