"""A hub in a process of its own, told by a file which teams are whose: python hub_process.py FOLDER NUMBER.

FOLDER/plan.json: {swarm: {team: {"hub": N, "agents": [..]}}}; FOLDER/bounds.json: fields of MessageBounds.
On standard input, one JSON list a line, answered by one JSON line: ["report"], ["put", swarm, sender,
receiver, text], ["take", swarm, agent], ["confirm", swarm, agent, number], ["limit", bytes of a file].
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from cfn.engine.loop import READ, Loop
from cfn.engine.messages import datagram
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.mesh import Mesh
from cfn.engine.messages.office import Messages
from cfn.errors import CfnError

LOOK_S = 0.005


class Plan:
    """The directory, read from the file whenever it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = 0
        self.swarms: dict[str, Any] = {}
        self._teams: dict[tuple[str, str], str] = {}

    def changed(self) -> bool:
        version = self._path.stat().st_mtime_ns
        if version == self._version:
            return False
        self._version = version
        self.swarms = json.loads(self._path.read_text())
        self._teams = {
            (swarm, agent): team
            for swarm, teams in self.swarms.items()
            for team, value in teams.items()
            for agent in value["agents"]
        }
        return True

    def team_of(self, swarm_id: str, agent: str) -> str | None:
        return self._teams.get((swarm_id, agent))

    def hub_of(self, swarm_id: str, team: str) -> int | None:
        found = self.swarms.get(swarm_id, {}).get(team)
        return None if found is None else int(found["hub"])

    def teams(self, swarm_id: str) -> list[str]:
        return list(self.swarms.get(swarm_id, {}))


class Hub:
    """The messages of one hub, and the test's hand on it."""

    def __init__(self, folder: Path, number: int, hubs: int) -> None:
        self.number = number
        self.loop = Loop()
        self.plan = Plan(folder / "plan.json")
        self.plan.changed()
        bounds = MessageBounds(**json.loads((folder / "bounds.json").read_text()))
        links = Mesh(
            self.loop,
            number,
            time.monotonic_ns(),
            lambda hub: folder / f"mesh-{hub}.sock",
            lambda: [hub for hub in range(hubs) if hub != number],
        )
        self.office = Messages(
            self.loop,
            links,
            bus=folder / f"bus-{number}.sock",
            folder=folder / "inboxes",
            bounds=lambda: bounds,
            directory=self.plan,
        )
        self._commands = b""
        self.loop.add(0, READ, self._asked)
        self.settle()
        self._look()

    def settle(self) -> None:
        """Hold exactly the teams that the plan gives to this hub."""
        wanted = {
            (swarm, team): value["agents"]
            for swarm, teams in self.plan.swarms.items()
            for team, value in teams.items()
            if value["hub"] == self.number
        }
        for key in set(self.office.teams) - set(wanted):
            self.office.close_team(*key, remove=key[0] not in self.plan.swarms)
        for (swarm, team), agents in wanted.items():
            try:
                self.office.open_team(swarm, team, agents)
            except BlockingIOError:  # another hub still holds it
                self.loop.at(time.monotonic() + LOOK_S, self.settle)
        self.office.moved()

    def _look(self) -> None:
        if self.plan.changed():
            self.settle()
        self.loop.at(time.monotonic() + LOOK_S, self._look)

    def _asked(self, _events: int) -> None:
        raw = os.read(0, 1 << 20)
        if not raw:
            sys.exit(0)
        self._commands += raw
        while b"\n" in self._commands:
            line, _, self._commands = self._commands.partition(b"\n")
            try:
                self._command(*json.loads(line))
            except CfnError as error:
                self._say({"error": str(error)})

    def _command(self, verb: str, *words: Any) -> None:
        if verb == "report":
            self._say(self.office.report())
        elif verb == "put":
            swarm, sender, receiver, text = words
            self.office.put(
                swarm,
                sender=sender,
                receiver=receiver,
                kind="note",
                payload=text.encode(),
                decided=lambda _number, reason: self._say({"reason": reason}),
            )
        elif verb == "limit":  # files of this process end here, as if tmpfs were full
            resource.setrlimit(resource.RLIMIT_FSIZE, (words[0], resource.RLIM_INFINITY))
            self._say({})
        elif verb == "take":
            swarm, agent = words
            self.office.take(swarm, agent, self._taken)
        else:
            self.office.confirm(*words)
            self._say({})

    def _taken(self, reason: int, messages: Any, first: int) -> None:
        rows = [raw[datagram.Header(raw).end :].decode() for raw in messages]
        self._say({"reason": reason, "messages": rows, "first": first})

    def _say(self, value: Any) -> None:
        print(json.dumps(value), flush=True)


if __name__ == "__main__":
    hub = Hub(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write("up\n")
    sys.stdout.flush()
    while True:
        hub.loop.turn(1.0)
