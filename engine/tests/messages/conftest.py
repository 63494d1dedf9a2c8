"""Hubs as real processes in a folder of their own in tmpfs, and agents of theirs in the test itself."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cfn.agent import Bus

HERE = Path(__file__).parent


class Hubs:
    """Starts, asks, kills hubs. Every team of the swarm "s" is named with its hub and its agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.teams: dict[str, dict[str, Any]] = {}
        self.count = 0

    def plan(self, **teams: tuple[int, list[str]]) -> None:
        """Say which hub has which team; the hubs notice within milliseconds."""
        self.teams = {team: {"hub": hub, "agents": agents} for team, (hub, agents) in teams.items()}
        self._publish()

    def move(self, team: str, hub: int) -> None:
        self.teams[team]["hub"] = hub
        self._publish()

    def end(self) -> None:
        """The swarm is over."""
        self.teams = {}
        self._publish()

    def start(self, *numbers: int, hubs: int, **bounds: int) -> None:
        self.count = hubs
        (self.folder / "bounds.json").write_text(json.dumps(bounds))
        for number in numbers:
            self.restart(number)

    def restart(self, number: int) -> None:
        with (self.folder / "hubs.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, HERE / "hub_process.py", self.folder, str(number), str(self.count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.processes[number] = process
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "up\n":
            assert line, (self.folder / "hubs.log").read_text()

    def ask(self, number: int, *words: Any) -> dict[str, Any]:
        """One command of hub_process.py; the hub's log lines are passed over."""
        process = self.processes[number]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        while True:
            line = process.stdout.readline()
            assert line, (self.folder / "hubs.log").read_text()
            value: dict[str, Any] = json.loads(line)
            if "event" not in value:
                return value

    def until(self, number: int, **figures: int) -> None:
        """Wait until a hub's report has these figures."""
        limit = time.monotonic() + 10
        while not figures.items() <= (report := self.ask(number, "report")).items():
            assert time.monotonic() < limit, report
            time.sleep(0.01)

    def kill(self, number: int) -> None:
        process = self.processes.pop(number)
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()

    def environment(self, agent: str, hub: int | None = None) -> dict[str, str]:
        team = next(name for name, value in self.teams.items() if agent in value["agents"])
        number = self.teams[team]["hub"] if hub is None else hub
        return {
            "CFN_BUS": str(self.folder / f"bus-{number}.sock"),
            "CFN_SWARM_ID": "s",
            "CFN_TEAM": team,
            "CFN_AGENT_ID": agent,
        }

    def bus(self, agent: str, hub: int | None = None) -> Bus:
        return Bus(self.environment(agent, hub), connect_s=10)

    def journal(self, team: str) -> Path:
        return self.folder / "inboxes" / "s" / team

    def _publish(self) -> None:
        new = self.folder / "plan.json.new"
        new.write_text(json.dumps({"s": self.teams} if self.teams else {}))
        new.replace(self.folder / "plan.json")

    def stop(self) -> None:
        for number in list(self.processes):
            self.kill(number)


@contextmanager
def made_hubs() -> Iterator[Hubs]:
    """No hub yet; all of them are killed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm"))
    made = Hubs(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


@pytest.fixture
def hubs() -> Iterator[Hubs]:
    """Hubs of one test."""
    with made_hubs() as made:
        yield made


@pytest.fixture
def pair(hubs: Hubs) -> Hubs:
    """One hub with one team of two agents."""
    hubs.plan(t=(0, ["a", "b"]))
    hubs.start(0, hubs=1)
    return hubs
