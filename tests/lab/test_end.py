"""Ending a host: only its own processes are touched, told apart by more than their id."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import cgroup, host, keeper, proc
from lab.errors import LabError
from lab.state import Paths

# Holds a lock file as a keeper does, says so, and never ends.
HOLDER = """
import sys, time
from pathlib import Path
from lab.locks import try_lock
lock = try_lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    paths = Paths(state_root=tmp_path, cache_root=tmp_path / "cache", name="demo")
    paths.host("a").mkdir(parents=True)
    (paths.host("a") / keeper.LOCK).touch()
    return paths


@pytest.fixture
def holder(where: Paths) -> Iterator[subprocess.Popen[str]]:
    """A keeper that hangs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(where.host("a") / keeper.LOCK)],
        stdout=subprocess.PIPE, text=True, cwd=Path(host.__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


NO_CGROUPS = cgroup.Layout(roots=(), systemd=False)


def test_a_keeper_that_hangs_is_killed(where: Paths, holder: subprocess.Popen[str]) -> None:
    (where.host("a") / keeper.LOCK).write_text(f"{holder.pid} {proc.start_time(holder.pid)}\n")
    assert host.status(where, "a", NO_CGROUPS) is host.Status.STARTING
    assert host.power_cut(where, "a", NO_CGROUPS)
    assert holder.wait(timeout=5) == -9
    assert host.status(where, "a", NO_CGROUPS) is host.Status.OFF


def test_a_process_with_the_same_id_but_another_beginning_is_spared(
    where: Paths, holder: subprocess.Popen[str]
) -> None:
    (where.host("a") / keeper.LOCK).write_text(f"{holder.pid} 1\n")
    with pytest.raises(LabError, match="a does not end"):
        host.power_cut(where, "a", NO_CGROUPS, timeout_s=1)
    assert holder.poll() is None


def test_ending_what_is_off_is_fine(where: Paths) -> None:
    assert not host.power_cut(where, "a", NO_CGROUPS)
    assert not host.power_cut(where, "never-made", NO_CGROUPS)
    assert host.status(where, "never-made", NO_CGROUPS) is host.Status.MISSING


def test_start_times() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = proc.start_time(process.pid)
    assert began is not None
    assert not proc.kill(process.pid, began + 1)
    assert not proc.kill(process.pid, None)
    assert process.poll() is None
    assert proc.kill(process.pid, began)
    process.wait()
    assert proc.start_time(process.pid) is None
    assert not proc.kill(process.pid, began)
