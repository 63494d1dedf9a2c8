"""Stages 1 to 3 on two real hosts: the ladder, what is taken back, what holds, and a controller that dies."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT
from tests.end_to_end.conftest import CFN, Lab, Played

pytestmark = pytest.mark.lab

HOSTS = ("one", "two")
TABLE = yaml.safe_load((PROJECT / "inventories/common/group_vars/all/stages.yml").read_text())["cfn_stages"]
TASKS_AT_MOST = 25
OVERRIDE = ("-e", "override_by=a-test", "-e", "override_reason=tried")
RESUME = ("-e", "resume_by=a-test", "-e", "resume_reason=understood")
DEGRADED = ("-e", "artifact=degraded", *OVERRIDE)

KILL_SEED = int(os.environ.get("KILL_SEED", "6"))
KILL_WITHIN_S = 30.0  # a run of a stage takes about as long on an idle machine


@pytest.fixture(scope="module")
def lab(pair: Lab) -> Iterator[Lab]:
    """The shared pair, which is at stage 1 again afterwards."""
    yield pair
    last = pair.play("stage1.yml", *OVERRIDE, *RESUME)
    assert last.returncode == 0, last.output


@contextmanager
def trouble(lab: Lab, host: str, begin: str, end: str) -> Iterator[None]:
    """Something is wrong with a host while the block runs."""
    lab.run(host, begin)
    try:
        yield
    finally:
        lab.run(host, end)


def words(played: Played) -> str:
    return " ".join(played.output.split())


def tasks_of(played: Played) -> dict[str, int]:
    """How many tasks each host ran."""
    return {host: int(count) for host, count in re.findall(r"(?m)^(\w+) +: ok=(\d+)", played.output)}


def running(lab: Lab, host: str) -> tuple[str, str, str, float]:
    """Release, topology, version and share of a host, as its router and its files say."""
    found = lab.cfn(host, "status")
    assert not found["config_problem"], found
    assert found["engine"] == "running", found
    router = found["router_status"]
    return found["release"], found["topology"], router["version"], router["traffic_pct"]


def assert_no_lock(lab: Lab) -> None:
    assert lab.run("one", f"{CFN} lock show") == "nobody holds the lock\n"


def at_stage(lab: Lab, stage: str) -> list[tuple[str, str, str, float]]:
    """Bring the lab to a stage, if it is not there, and return what its hosts run."""
    wanted = (TABLE[stage]["config"]["CFN_TOPOLOGY"], "v2", TABLE[stage]["traffic"]["default_pct"])
    found = [lab.cfn(host, "status") for host in HOSTS]
    if any(
        (each["topology"], each["version"], each["traffic_pct"], each["breaker"]["state"])
        != (*wanted, "closed")
        for each in found
    ):
        played = lab.play(f"{stage}.yml", *OVERRIDE, *RESUME)
        assert played.returncode == 0, played.output
    return [running(lab, host) for host in HOSTS]


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_the_ladder_and_a_second_run_changes_nothing(lab: Lab, stage: str) -> None:
    for _, topology, version, share in at_stage(lab, stage):
        assert topology == TABLE[stage]["config"]["CFN_TOPOLOGY"]
        assert (version, share) == ("v2", TABLE[stage]["traffic"]["default_pct"])
    again = lab.play(f"{stage}.yml")
    assert (again.returncode, again.changed) == (0, 0), again.output
    assert "HOLDING" in again.output
    counts = tasks_of(again)
    assert max(counts[host] for host in HOSTS) <= TASKS_AT_MOST, counts
    assert_no_lock(lab)


@pytest.mark.full
def test_lowering_from_stage_3_to_stage_1_needs_no_gate_and_stops_the_coordinators(lab: Lab) -> None:
    at_stage(lab, "stage3")
    lowered = lab.play("stage1.yml", "-e", "traffic=10")
    assert lowered.returncode == 0, lowered.output
    for host in HOSTS:
        assert running(lab, host)[1:] == ("flat", "v2", 10)
        assert lab.run(host, "systemctl list-units --plain --no-legend 'cfn-coordinator@*'") == ""


def test_a_full_disk_stops_the_batches_after_it_and_all_is_taken_back(lab: Lab) -> None:
    before = at_stage(lab, "stage1")
    full = "mount -t tmpfs -o size=1M tmpfs /opt/cfn/archives"
    with trouble(lab, "two", full, "umount /opt/cfn/archives"):
        played = lab.play("stage1.yml", *DEGRADED)
    assert played.returncode == 21, played.output
    for text in (
        'two failed in deploy, task "Bring the artifact"',
        "No space left on device",
        "one was taken back: release",
        "Type next: mend two, then the same command again.",
    ):
        assert text in words(played)
    assert [running(lab, host) for host in HOSTS] == before
    last = lab.cfn("one", "ledger", "show", "--last", "2")["records"]
    assert [record["kind"] for record in last] == ["failed", "unlocked"]
    assert list(last[0]["data"]["failed"]) == ["two"]


@pytest.mark.full
def test_a_service_that_cannot_start_in_the_first_batch_leaves_the_others_alone(lab: Lab) -> None:
    at_stage(lab, "stage1")
    folder = "/etc/systemd/system/cfn-coordination.service.d"
    broken = f"mkdir -p {folder}; printf '[Service]\\nExecStartPre=/bin/false\\n' > {folder}/zz.conf"
    with trouble(lab, "one", broken, f"rm -r {folder}; systemctl daemon-reload"):
        played = lab.play("stage2.yml", *OVERRIDE)
        assert played.returncode == 21, played.output
        assert "one failed in deploy" in words(played)
        assert "one was NOT taken back" in words(played)  # it cannot start on the way back either
        assert "two was not touched" in words(played)
        assert running(lab, "two")[1:] == ("flat", "v2", 10)
    assert_no_lock(lab)


@pytest.mark.full
def test_a_step_that_makes_no_progress_fails_and_names_its_deadline(lab: Lab) -> None:
    before = at_stage(lab, "stage1")
    for host in HOSTS:  # the whole ladder takes longer than a second
        lab.run(host, "rm -f /opt/cfn/smoke-passed")
    deadlines = '{"cfn_deadlines_s": {"deploy": 300, "smoke": 1, "flip": 60, "judge": 300, "take_back": 300}}'
    played = lab.play("stage1.yml", "-e", deadlines)
    assert played.returncode == 21, played.output
    assert 'failed in smoke, task "Coordinate for real": no end within its deadline of 1 s' in words(played)
    assert [running(lab, host) for host in HOSTS] == before


def test_a_first_look_that_cannot_be_taken_takes_every_host_back(lab: Lab) -> None:
    before = at_stage(lab, "stage1")
    played = lab.play("stage1.yml", "-e", "traffic=5", "-e", "gate_since=yesterday")
    assert played.returncode == 21, played.output
    for host in HOSTS:
        assert f'{host} failed in judge, task "Stop at what could not be judged": cfn gate' in words(played)
        assert f"{host} was taken back" in words(played)
    assert [running(lab, host) for host in HOSTS] == before
    assert_no_lock(lab)


@pytest.mark.full
def test_a_watch_that_cannot_begin_takes_every_host_back(lab: Lab) -> None:
    before = at_stage(lab, "stage1")
    plan = "/etc/cfn/watch.json"
    lab.run("one", f"rm -f {plan}")
    with trouble(lab, "one", f"mkdir {plan}", f"rmdir {plan}"):
        played = lab.play("stage1.yml", "-e", "traffic=5", "-e", "cfn_watch_enabled=true")
    assert lab.play("watch.yml", "-e", "state=stopped").returncode == 0
    assert played.returncode == 21, played.output
    for host in HOSTS:
        assert f'{host} failed in judge, task "Stop if nobody watches"' in words(played)
        assert f"{host} was taken back" in words(played)
    assert [running(lab, host) for host in HOSTS] == before
    assert_no_lock(lab)


def test_a_pause_holds_and_resuming_is_recorded(lab: Lab) -> None:
    at_stage(lab, "stage1")
    paused = lab.play("hold.yml", "-e", "state=held", "-e", "by=ada", "-e", "reason=look")
    assert paused.returncode == 0, paused.output
    held = lab.play("stage1.yml", "-e", "traffic=5")
    assert (held.returncode, held.changed) == (20, 0), held.output
    assert "ada holds it since" in words(held)
    resumed = lab.play("stage1.yml", "-e", "traffic=5", "-e", "resume_by=eve", "-e", "resume_reason=looked")
    assert resumed.returncode == 0, resumed.output


@pytest.mark.full
def test_a_manual_v1_and_an_open_breaker_hold_and_name_the_host(lab: Lab) -> None:
    at_stage(lab, "stage1")
    lab.run("two", f"{CFN} traffic --version v1")
    lab.run("one", f"{CFN} traffic --breaker open --reason 'a test'")
    held = lab.play("stage1.yml")
    assert (held.returncode, held.changed) == (20, 0), held.output
    assert "two is on V1 by hand" in words(held)
    assert "the breaker of one is open" in words(held)
    resumed = lab.play("stage1.yml", "-e", "resume_by=eve", "-e", "resume_reason=understood")
    assert resumed.returncode == 0, resumed.output
    assert [running(lab, host)[2:] for host in HOSTS] == [("v2", 10), ("v2", 10)]


def test_a_second_controller_is_refused_by_the_lock(lab: Lab) -> None:
    other = '{"run": "1.1.x", "controller": "elsewhere", "purpose": "another run"}'
    lab.run("one", f"echo '{other}' | {CFN} lock take --actor eve")
    try:
        refused = lab.play("stage1.yml", "-e", "traffic=7")
        assert (refused.returncode, refused.changed) == (20, 0), refused.output
        assert "eve holds the lock of this environment" in words(refused)
    finally:
        lab.run("one", f"{CFN} lock break --actor a-test --reason over")


def killed_at(lab: Lab, delay_s: float, *arguments: str) -> str:
    """Start a stage, kill its whole process group after a while; what it had printed by then."""
    with subprocess.Popen(
        lab.argv(*arguments), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as controller:  # fmt: skip
        try:
            output, _ = controller.communicate(timeout=delay_s)
        except subprocess.TimeoutExpired:
            os.killpg(controller.pid, signal.SIGKILL)
            output, _ = controller.communicate()
    return output


def kill_and_take_up(lab: Lab, count: int) -> None:
    moments = random.Random(KILL_SEED)  # noqa: S311 - moments of a test
    print(f"KILL_SEED={KILL_SEED}")
    stages = ("stage2", "stage1")
    for number in range(count):
        stage, delay_s = stages[number % 2], moments.uniform(1, KILL_WITHIN_S)
        output = killed_at(lab, delay_s, f"{stage}.yml", *OVERRIDE)
        reached = re.findall(r"(?:PLAY|TASK) \[(.*?)\]", output)[-1:]
        print(f"{number}: {stage} killed after {delay_s:.1f} s in {reached}")
        again = lab.play(f"{stage}.yml", *OVERRIDE)
        assert again.returncode == 0, again.output
        wanted = (TABLE[stage]["config"]["CFN_TOPOLOGY"], "v2", TABLE[stage]["traffic"]["default_pct"])
        found = [running(lab, host) for host in HOSTS]
        assert [each[1:] for each in found] == [wanted, wanted], found
        assert found[0][0] == found[1][0]
        assert_no_lock(lab)


def test_a_controller_killed_at_random_moments_is_taken_up(lab: Lab) -> None:
    kill_and_take_up(lab, 3)


@pytest.mark.full
def test_a_controller_killed_at_twenty_random_moments_is_taken_up(lab: Lab) -> None:
    kill_and_take_up(lab, 20)


def link_of(lab: Lab, host: str) -> str:
    listed = yaml.safe_load(
        subprocess.run(
            ["lab", "--name", lab.name, "ls", "--json"], check=True, capture_output=True, text=True
        ).stdout
    )
    return next(str(each["link"]) for each in listed["hosts"] if each["name"] == host)


def cut_off(lab: Lab, host: str = "two") -> Callable[[], object]:
    link = link_of(lab, host)
    subprocess.run(["ip", "link", "set", link, "down"], check=True)
    return lambda: subprocess.run(["ip", "link", "set", link, "up"], check=True)


def power_off(lab: Lab) -> Callable[[], object]:
    subprocess.run(["lab", "--name", lab.name, "off", "two"], check=True, capture_output=True)
    return lambda: subprocess.run(["lab", "--name", lab.name, "on", "two"], check=True, capture_output=True)


def struck_at(lab: Lab, heading: str, strike: Callable[[Lab], Callable[[], object]], log: Path) -> Played:
    """Run stage 2 and strike the second host as soon as a heading is printed; it is well again afterwards."""
    mend: Callable[[], object] | None = None
    with log.open("w") as out:
        process = subprocess.Popen(
            lab.argv("stage2.yml", *OVERRIDE), cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        while process.poll() is None and heading not in log.read_text():
            time.sleep(0.1)
        mend = strike(lab)
        process.wait(timeout=600)
    finally:
        if mend is not None:
            mend()
        process.kill()
    return Played(process.returncode, log.read_text())


def assert_only_two_is_harmed(lab: Lab, played: Played, step: str) -> None:
    assert played.returncode == 21, played.output
    assert f"two failed in {step}" in words(played)
    assert "two was NOT taken back: it does not answer" in words(played)
    assert running(lab, "one")[1:] == ("flat", "v2", 10)  # what it had
    assert_no_lock(lab)


@pytest.mark.full
def test_a_host_that_is_cut_off_while_it_is_deployed_harms_no_other(lab: Lab, tmp_path: Path) -> None:
    at_stage(lab, "stage1")
    played = struck_at(lab, "TASK [The second batch]", cut_off, tmp_path / "log")
    assert_only_two_is_harmed(lab, played, "deploy")


@pytest.mark.full
@pytest.mark.parametrize("strike", [cut_off, power_off])
@pytest.mark.parametrize(
    ("heading", "step"),
    [("PLAY [(4/8)", "deploy"), ("TASK [The second batch]", "deploy"), ("PLAY [(5/8) Smoke", "smoke"),
     ("PLAY [(6/8)", "flip")],
)  # fmt: skip
def test_a_host_that_is_lost_at_any_step_harms_no_other(
    lab: Lab, tmp_path: Path, strike: Callable[[Lab], Callable[[], object]], heading: str, step: str
) -> None:
    at_stage(lab, "stage1")
    played = struck_at(lab, heading, strike, tmp_path / "log")
    assert_only_two_is_harmed(lab, played, step)


@pytest.mark.full
def test_a_control_host_that_is_lost_before_the_first_look_leaves_no_other_half_way(
    lab: Lab, tmp_path: Path
) -> None:
    at_stage(lab, "stage1")
    played = struck_at(lab, "PLAY [(7/8)", lambda lab: cut_off(lab, "one"), tmp_path / "log")
    assert played.returncode == 21, played.output
    assert "two was taken back" in words(played)
    assert running(lab, "two")[1:] == ("flat", "v2", 10)  # what it had
    assert lab.play("stage1.yml", *OVERRIDE, *RESUME).returncode == 0  # also with the lock that was left
    assert_no_lock(lab)


@pytest.mark.full
def test_a_host_that_is_gone_before_is_named_and_nothing_is_touched(lab: Lab) -> None:
    mend = cut_off(lab)
    try:
        played = lab.play("stage2.yml", *OVERRIDE)
        assert (played.returncode, played.changed) == (20, 0), played.output
        assert "two: unreachable" in words(played)
    finally:
        mend()


@pytest.mark.full
def test_a_wrong_clock_is_named_and_nothing_is_touched(lab: Lab) -> None:
    # The lab's hosts share the machine's clock: the host's Python reads another one.
    path = "/usr/local/lib/python3.11/dist-packages/wrong-clock.pth"
    wrong = f"echo 'import time; time.time = lambda real=time.time: real() + 600' > {path}"
    with trouble(lab, "two", wrong, f"rm {path}"):
        played = lab.play("stage1.yml")
    assert (played.returncode, played.changed) == (20, 0), played.output
    assert "two: clock_skew_s: found at least" in words(played)
    assert "one: " not in played.output
