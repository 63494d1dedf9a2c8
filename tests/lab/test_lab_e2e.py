"""A real lab from end to end: hosts boot, are reached, lose power, and leave nothing behind.

Needs root and, the first time, half a minute for the image. Labs live in a state folder of their
own, so a lab that a person has running is not touched.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import cgroup, doctor, names

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="hosts can be made by root only"),
    pytest.mark.skipif(bool(doctor.missing()), reason="packages are missing: python -m lab doctor"),
]

ROOT = Path(__file__).resolve().parents[2]
SPEC = """
defaults: {shm_mb: 64, nofile: 4096}
hosts:
  - {name: plain, groups: [cfn, control]}
  - {name: odd, shm_mb: 32, nofile: 1024, bash: "3.2", groups: [cfn, monitoring]}
"""


@dataclass(frozen=True)
class Lab:
    """One lab of the tests, and how to drive it."""

    name: str
    folder: Path
    cache: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        cache = {"CFN_LAB_CACHE": self.cache} if self.cache else {}
        return {**os.environ, "PYTHONPATH": str(ROOT), "CFN_LAB_STATE": str(self.folder / "state"), **cache}

    @property
    def lab_id(self) -> str:
        return names.lab_id((self.folder / "state").resolve(), self.name)

    def popen(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lab", "--name", self.name, *words],
            env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # A test run in the background of a shell ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def run(self, *words: str, code: int = 0) -> str:
        process = self.popen(*words)
        out, err = process.communicate(timeout=180)
        assert process.returncode == code, f"lab {words} ended with {process.returncode}\n{out}\n{err}"
        return out if code == 0 else err

    def up(self, *words: str) -> dict[str, str]:
        """What ``up`` did to each host."""
        spec = self.folder / "spec.yml"
        spec.write_text(SPEC)
        result = json.loads(self.run("up", "--json", "--spec", str(spec), *words))
        return {host["name"]: host["action"] for host in result["hosts"]}

    def ls(self) -> dict[str, dict[str, Any]]:
        return {host["name"]: host for host in json.loads(self.run("ls", "--json"))["hosts"]}

    def sh(self, host: str, line: str) -> str:
        return self.run("sh", host, "--", line).strip()

    def wait_sh(self, host: str, line: str, timeout_s: float = 20) -> str:
        """As sh, for a host that is booting of its own accord."""
        deadline = time.monotonic() + timeout_s
        while True:
            process = self.popen("sh", host, "--", line)
            out, err = process.communicate(timeout=60)
            if process.returncode == 0:
                return out.strip()
            assert time.monotonic() < deadline, err
            time.sleep(0.3)

    def leftovers(self) -> list[str]:
        """Mounts (in anyone's view), links, cgroups and processes of this lab."""
        found = [f"link {p.name}" for p in Path("/sys/class/net").iterdir()
                 if p.name == names.bridge_name(self.lab_id)
                 or p.name in {names.link_name(self.lab_id, h) for h in ("plain", "odd")}]  # fmt: skip
        for root in cgroup.detect().roots:
            found += [f"cgroup {path}" for path in root.rglob(f"*{self.lab_id}*")]
        state = str((self.folder / "state" / self.name).resolve())
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_text().replace("\0", " ")
                mounts = (process / "mountinfo").read_text()
            except OSError:
                continue
            found += [f"process {process.name}: {command}"] if state in command else []
            found += [f"mount in {process.name}: {line}" for line in mounts.splitlines() if state in line]
        found += [f"machine {path}" for path in Path("/run/systemd/nspawn/propagate").glob("*")
                  if path.name in {names.machine_name(self.lab_id, h) for h in ("plain", "odd")}]  # fmt: skip
        found += [f"file {path}" for path in (self.folder / "state").glob(f"{self.name}*")]
        return found


def new_lab(folder: Path) -> Lab:
    return Lab(name=f"t{uuid.uuid4().hex[:8]}", folder=folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab that is up; tests leave it up."""
    lab = new_lab(tmp_path_factory.mktemp("lab"))
    inventory, molecule = str(lab.folder / "inventory"), str(lab.folder / "molecule.yml")
    try:
        assert lab.up("--inventory", inventory, "--molecule", molecule) == {"plain": "made", "odd": "made"}
        yield lab
    finally:
        lab.run("down")
        assert lab.leftovers() == []
        assert not Path(molecule).exists()
        assert not Path(inventory, "hosts.yml").exists()


def test_hosts_are_as_the_spec_says(shared: Lab) -> None:
    report = (
        "hostname; cat /etc/cfn-lab.json; sudo id -u; df -m --output=size /dev/shm | tail -1; "
        "bash -c 'echo $BASH_VERSION'; bash --version | head -1; sudo systemctl is-system-running --wait; "
        "sudo systemd-run -q --wait --pipe -p LimitNOFILE=4000 bash -c 'ulimit -Hn'; ip route | wc -l"
    )
    plain = shared.sh("plain", report).splitlines()
    odd = shared.sh("odd", report).splitlines()
    assert json.loads(plain[1]) == {"lab": shared.name, "host": "plain"}
    assert (plain[0], plain[2], plain[3].strip(), plain[6]) == ("plain", "0", "64", "running")
    assert (odd[0], odd[2], odd[3].strip(), odd[6]) == ("odd", "0", "32", "running")
    assert plain[4].startswith("5.")
    assert odd[4].startswith("3.2")
    assert "version 3.2." in odd[5]
    # A service may ask for more than the host has: it gets what the host has.
    assert (plain[7], odd[7]) == ("4000", "1024")
    # Only the way to the lab's own network; none out.
    assert (plain[8], odd[8]) == ("1", "1")


def test_hosts_know_one_another_and_limits_act(shared: Lab) -> None:
    assert "1 received" in shared.sh("plain", "ping -c1 -W2 odd")
    hungry = "sudo systemd-run -q --wait --pipe -p MemoryMax=40M python3 -c 'bytearray(200_000_000)'; echo $?"
    assert shared.sh("plain", hungry) != "0"


def test_a_wrong_host_key_is_refused(shared: Lab) -> None:
    known = shared.folder / "state" / shared.name / "known_hosts"
    text = known.read_text()
    lines = [line.split() for line in text.splitlines()]
    known.write_text("".join(f"{lines[i][0]} {' '.join(lines[1 - i][1:])}\n" for i in (0, 1)))
    try:
        assert "verification failed" in shared.run("sh", "plain", "--", "true", code=255)
    finally:
        known.write_text(text)


def test_power_off_and_on_keeps_files_and_identity(shared: Lab) -> None:
    identity = shared.sh("odd", "echo kept > ~/file; sync; cat /etc/machine-id")
    shared.run("off", "odd")
    assert shared.ls()["odd"]["state"] == "off"
    assert "odd is off" in shared.run("sh", "odd", "--", "true", code=2)
    shared.run("on", "odd")
    assert shared.sh("odd", "cat file /etc/machine-id").split() == ["kept", identity]


def test_up_again_touches_only_what_is_not_there(shared: Lab) -> None:
    assert shared.up() == {"plain": "unchanged", "odd": "unchanged"}
    leader = shared.ls()["plain"]["leader"]
    shared.run("off", "odd")
    assert shared.up() == {"plain": "unchanged", "odd": "started"}
    shared.run("rm", "odd")
    assert "odd" not in (shared.folder / "inventory" / "hosts.yml").read_text()
    assert shared.up() == {"plain": "unchanged", "odd": "made"}
    assert shared.ls()["plain"]["leader"] == leader


def test_a_host_that_reboots_itself_comes_back(shared: Lab) -> None:
    before = shared.ls()["odd"]["leader"]
    shared.popen("sh", "odd", "--", "sudo systemctl reboot").communicate(timeout=30)
    deadline = time.monotonic() + 20
    while shared.ls()["odd"]["leader"] in (before, None):
        assert time.monotonic() < deadline, "the host did not come back"
        time.sleep(0.2)
    assert shared.wait_sh("odd", "hostname") == "odd"


def test_two_labs_do_not_disturb_each_other(shared: Lab) -> None:
    other = new_lab(shared.folder)
    leaders = {name: host["leader"] for name, host in shared.ls().items()}
    try:
        assert other.up() == {"plain": "made", "odd": "made"}
        assert json.loads(other.sh("plain", "cat /etc/cfn-lab.json"))["lab"] == other.name
        first, second = shared.ls(), other.ls()
        assert {h["address"] for h in first.values()}.isdisjoint(h["address"] for h in second.values())
        other.run("off", "plain")
    finally:
        other.run("down")
    assert other.leftovers() == []
    assert {name: host["leader"] for name, host in shared.ls().items()} == leaders
    assert shared.sh("plain", "hostname") == "plain"


def test_a_wrong_spec_touches_nothing(tmp_path: Path) -> None:
    lab = new_lab(tmp_path)
    spec = tmp_path / "bad.yml"
    spec.write_text("hosts: [{name: a, shm: 5}]")
    assert "did you mean shm_mb" in lab.run("up", "--spec", str(spec), code=2)
    assert lab.leftovers() == []
    lab.run("down")


@pytest.mark.parametrize("delay_s", [0.15, 0.3, 0.5, 0.9, 1.6])
def test_killed_anywhere_down_leaves_nothing(tmp_path: Path, shared: Lab, delay_s: float) -> None:
    assert shared  # the image is there, so the kill falls into making and booting hosts
    lab = new_lab(tmp_path)
    spec = tmp_path / "spec.yml"
    spec.write_text(SPEC)
    process = lab.popen("up", "--spec", str(spec))
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lab.run("down")
    time.sleep(0.3)  # a keeper that had just been started would show by now
    assert lab.leftovers() == []


def test_killed_anywhere_up_again_finishes(tmp_path: Path, shared: Lab) -> None:
    assert shared
    lab = new_lab(tmp_path)
    try:
        for delay_s in (0.25, 0.6, 1.0):
            process = lab.popen("up", "--spec", str(shared.folder / "spec.yml"))
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        lab.up()
        assert {host["state"] for host in lab.ls().values()} == {"running"}
        assert lab.sh("odd", "hostname") == "odd"
    finally:
        lab.run("down")
    assert lab.leftovers() == []


def test_down_needs_no_state_file(tmp_path: Path, shared: Lab) -> None:
    assert shared
    lab = new_lab(tmp_path)
    lab.up()
    lab.run("off", "odd")  # only its folder tells of it now
    (tmp_path / "state" / lab.name / "state.json").unlink()
    assert json.loads(lab.run("down", "--json"))["hosts"] == ["odd", "plain"]
    assert lab.leftovers() == []


def test_down_finds_a_process_by_its_cgroup_alone(tmp_path: Path) -> None:
    lab = new_lab(tmp_path)
    layout = cgroup.detect()
    if layout.systemd:
        pytest.skip("systemd makes the cgroups here")
    stray = subprocess.Popen(["sleep", "60"])
    directories = layout.host_dirs(lab.lab_id, "plain")
    cgroup.make(directories)
    (directories[0] / "cgroup.procs").write_text(str(stray.pid))
    try:
        lab.run("down")
        assert stray.wait(timeout=5) == -signal.SIGKILL
    finally:
        stray.kill()
        stray.wait()
    assert lab.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_image_build_leaves_nothing(tmp_path: Path, number: int) -> None:
    lab = Lab(name="tbuild", folder=tmp_path, cache=str(tmp_path / "cache"))
    process = lab.popen("up")
    time.sleep(5)
    process.send_signal(number)
    process.communicate(timeout=20)
    deadline = time.monotonic() + 5
    while running := _processes_in(tmp_path / "cache"):
        assert time.monotonic() < deadline, running
        time.sleep(0.1)
    lab.run("down", "--image")
    assert lab.leftovers() == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []


def _processes_in(folder: Path) -> list[str]:
    """Processes that have *folder* as their root, in their command, or among their mounts."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            root = str((process / "root").readlink())
            command = (process / "cmdline").read_text()
            mounts = (process / "mountinfo").read_text()
        except OSError:
            continue
        if str(folder) in root or str(folder) in command or str(folder) in mounts:
            found.append(f"{process.name} {command}")
    return found
