"""What the engine's processes come to, read from real ones."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cfn.collector import processes
from cfn.collector.processes import Daemons, Processes

HELD = 200
FORKED = 3
SPAWNER = f"""
import os, sys
held = [os.open(os.devnull, os.O_RDONLY) for _ in range({HELD})]
for closes in (False,) * {FORKED} + (True,):
    if not os.fork():
        if closes:
            os.closerange(3, 1 << 20)
        sys.stdin.read()
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def spawner() -> Iterator[int]:
    """A process with HELD descriptors, FORKED children that have copies, and one that has closed them."""
    with subprocess.Popen(
        [sys.executable, "-c", SPAWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.stdin.close()


def read(spawner: int) -> dict[str, Any]:
    time.sleep(0.2)  # for the child that closes to have done it
    return Processes().read(Daemons(conductor=os.getppid(), spawner=spawner, router=os.getppid()))


def test_what_a_newborn_has_not_closed_yet_does_not_count(
    spawner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    young = read(spawner)["fd_count"]
    monkeypatch.setattr(processes, "NEWBORN_S", 0.0)
    grown = read(spawner)["fd_count"]
    assert grown >= (1 + FORKED) * HELD
    assert HELD <= young < 2 * HELD  # the spawner's own, and little for each worker
