"""Which process is which, and what the kernel says about it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bench import processes
from engine.bench.machine import share_pct, ticks


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["python", "-m", "cfn", "conductor"], ("conductor", 0)),
        (["python3.11", "-IS", "/opt/cfn/releases/1/bin/cfn", "coordinator", "3"], ("coordinator", 3)),
        (
            ["python3.11", "-IS", "-c", "from cfn.engine.lean.spawner import main", "/x/lib", "3"],
            ("spawner", 0),
        ),
        (["python", "-m", "cfn", "spawner", ""], ("spawner", 0)),
        (["python", "-m", "cfn", "router"], ("", 0)),
        (["cfn"], ("", 0)),
        (["bash", "message-bus.sh", "coordinate"], ("", 0)),
        ([""], ("", 0)),
    ],
)
def test_role(words: list[str], found: tuple[str, int]) -> None:
    assert processes.role(words) == found


def test_a_worker_is_told_from_its_spawner_and_other_engines_are_left_alone() -> None:
    argv = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "cfn", "spawner"]
    environments = [{"CFN_ROOT": "/a"}, {"CFN_ROOT": "/a"}, {"CFN_ROOT": "/b"}]
    started = [subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) for env in environments]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        found = processes.find(processes.namespace(), b"CFN_ROOT=/a", started[0].pid)
        assert {(one.pid, one.inner_pid, one.role) for one in found} == {
            (started[0].pid, started[0].pid, "spawner"),
            (started[1].pid, started[1].pid, "worker"),
        }
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_the_id_that_a_process_has_for_itself() -> None:
    assert processes.inner_pid("Name:\tx\nNSpid:\t4711\t12\n") == 12


def test_memory() -> None:
    assert processes.pss_of("55d0-7ffc ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPss:  123 kB\n") == 125_952
    assert processes.pss_of("") is None
    assert 1_000_000 < (processes.pss_bytes(os.getpid()) or 0) < 10_000_000_000


def test_descriptors(tmp_path: Path) -> None:
    before = processes.descriptors(os.getpid()) or 0
    with (tmp_path / "file").open("w"):
        assert processes.descriptors(os.getpid()) == before + 1


def test_what_has_ended_has_no_figures() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert (processes.pss_bytes(process.pid), processes.descriptors(process.pid)) == (None, None)


def test_tree(tmp_path: Path) -> None:
    assert processes.tree_bytes(tmp_path) == 0
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/file").write_bytes(b"x" * 10_000)
    assert processes.tree_bytes(tmp_path) >= 10_000


def test_how_busy_the_machine_is() -> None:
    before, after = "cpu  10 0 10 100 20 0 0 0 0 0\ncpu0 1 1", "cpu  30 0 20 160 30 0 0 0 0 0\n"
    assert share_pct(ticks(before), ticks(after)) == 30.0
    assert share_pct(ticks(before), ticks(before)) == 0.0
