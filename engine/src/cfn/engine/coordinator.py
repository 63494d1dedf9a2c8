"""A coordinator: a hub of the hybrid topology, for the teams that the conductor gives it.

It decides nothing that must survive it: what is claimed is in tmpfs, sockets are with the spawner, and
the conductor knows what it was asked. When the conductor goes away it stops what it had been asked, keeps
its workers' sockets, and waits for the next one.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cfn.engine import team_calls
from cfn.engine.claims import Arenas
from cfn.engine.directory import SwarmDirectory
from cfn.engine.fleet import BEAT_S
from cfn.engine.guard import connected, one_at_a_time, own_folder
from cfn.engine.hosts import LocalHost
from cfn.engine.hub import Hub
from cfn.engine.lean.control import Channel
from cfn.engine.log import log
from cfn.engine.loop import READ, WRITE, Loop
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.mesh import Mesh
from cfn.engine.messages.office import Messages
from cfn.engine.notify import Watchdog, notify
from cfn.engine.spawner_link import SpawnerLink
from cfn.engine.teams import TeamOrder, TeamOutcome
from cfn.paths import Paths
from cfn.release import version

_RETRY_S = 0.02

Head = Mapping[str, Any]


class Coordinator:
    """The process's one object. Raises CfnError at start when it may not serve."""

    def __init__(self, paths: Paths, number: int) -> None:
        for folder in (paths.shm, paths.run, paths.claims, paths.outputs):
            own_folder(folder)
        self._lock = one_at_a_time(paths.run / f"coordinator-{number}.lock", f"coordinator {number}")
        self._number = number
        self._path = str(paths.coordinators_socket)
        self._loop = Loop()
        self._spawn_rate = 0
        self._link = SpawnerLink(self._loop, paths, 0, lambda: self._spawn_rate)
        self._hub = Hub(
            self._loop,
            self._link,
            Arenas(paths.claims, paths.outputs),
            outputs=str(paths.outputs),
            bus=str(paths.bus_socket(number)),
        )
        self._directory = SwarmDirectory()
        self._bounds = MessageBounds()
        self._others: list[int] = []
        self._messages = Messages(
            self._loop,
            Mesh(self._loop, number, time.monotonic_ns(), paths.mesh_socket, lambda: self._others),
            bus=paths.bus_socket(number),
            folder=paths.shm / "inboxes",
            bounds=lambda: self._bounds,
            directory=self._directory,
        )
        self._host = LocalHost(number, self._hub, self._messages)
        self._channel: Channel | None = None
        self._parts = team_calls.Parts()
        self._generation = 0
        self._stopping = False
        self._watchdog = Watchdog()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add(self._wake_read, READ, self._woken)
        self._calls: dict[str, Callable[[Head, bytes], None]] = {
            "begin": self._begin,
            "give_up": self._give_up,
            "snapshot": self._snapshot,
            "stop": self._stop_order,
            "open_team": self._open_team,
            "hand_over": self._hand_over,
            "close_team": self._close_team,
            "broadcast": self._broadcast,
            "roll": self._roll,
        }

    def run(self) -> None:
        """Serve until SIGTERM. A stop ends nothing: the teams go on with other coordinators."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGINT, self._terminated)
        self._connect()
        self._beat()
        notify("READY=1")
        log("coordinator started", coordinator=self._number, pid=os.getpid(), release=version())
        while not self._stopping:
            self._loop.turn(self._watchdog.longest_wait_s)
            self._watchdog.feed()
        notify("STOPPING=1")
        self._messages.close()
        log("coordinator stopped", coordinator=self._number, teams=len(self._hub.teams))

    def _woken(self, _events: int) -> None:
        os.read(self._wake_read, 4_096)

    def _terminated(self, *_: object) -> None:
        self._stopping = True

    # The conductor

    def _connect(self) -> None:
        try:
            connection = connected(self._path)
        except OSError:  # nobody is there, or no descriptor is left
            self._loop.at(time.monotonic() + _RETRY_S, self._connect)
            return
        self._channel = Channel(connection)
        self._parts = team_calls.Parts()
        self._loop.add(connection.fileno(), READ, self._readable)
        teams = [[team.swarm_id, team.team] for team in self._hub.teams.values() if team.kept]
        self._say({"hello": self._number, "teams": teams})

    def _readable(self, events: int) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            if events & WRITE:
                channel.flush()
            while self._channel is channel and (received := channel.receive()) is not None:
                for descriptor in received[1]:
                    os.close(descriptor)
                self._ordered(*team_calls.decode(received[0]))
            self._watch()
        except (OSError, EOFError, *team_calls.MALFORMED) as error:
            self._lost(str(error) or "it closed the connection")

    def _ordered(self, head: dict[str, Any], part: bytes) -> None:
        tail = self._parts.add(head, part)
        if tail is None:
            return
        if "settings" in head:
            self._bounds = MessageBounds(**head["settings"]["bounds"])
            self._others = [hub for hub in head["settings"]["hubs"] if hub != self._number]
            if self._spawn_rate != int(head["settings"]["spawn_rate"]):
                self._spawn_rate = int(head["settings"]["spawn_rate"])
                self._link.renew(self._generation)
        listed = json.loads(tail) if "directory" in head else {}
        if listed:
            for swarm_id, places in listed.items():
                self._listed(swarm_id, places)
            self._messages.moved()
        if "welcome" in head:
            self._welcomed(head, listed)
        if "do" in head:
            self._calls[head["do"]](head, tail)

    def _listed(self, swarm_id: str, places: Sequence[dict[str, Any]]) -> None:
        self._directory.set_json(swarm_id, places)
        if not places:
            self._messages.forget_ended(swarm_id)

    def _welcomed(self, head: Head, listed: Collection[str]) -> None:
        first = self._generation == 0
        self._generation = int(head["welcome"])
        in_use = set(head["swarms"])
        given = {(str(swarm_id), str(team)) for swarm_id, team in head["teams"]}
        for team in list(self._hub.teams.values()):
            if team.swarm_id not in in_use:
                self._messages.close_team(team.swarm_id, team.team, remove=True)
                self._hub.end_team(team)
            elif (
                team.swarm_id,
                team.team,
            ) not in given:  # another has it; two would take each other's answers
                self._messages.close_team(team.swarm_id, team.team, remove=False)
                self._hub.drop_team(team)
        for swarm_id in self._directory.swarms:
            if swarm_id not in listed:
                self._listed(swarm_id, ())
        self._link.renew(self._generation)
        if first:
            self._link.start(self._hub)
        log("conductor connected", coordinator=self._number, generation=self._generation)

    def _lost(self, reason: str) -> None:
        """Without a conductor nobody hears the results: drop what was asked, and the sockets of what
        lives for one request; the next conductor asks again, perhaps somebody else."""
        if self._channel is None:
            return
        log("conductor lost", coordinator=self._number, reason=reason)
        self._loop.remove(self._channel.socket.fileno())
        self._channel.close()
        self._channel = None
        for epoch in self._hub.running:
            self._hub.drop(epoch)
        self._messages.forget_ended()
        for team in list(self._hub.teams.values()):
            if not team.kept:
                self._messages.close_team(team.swarm_id, team.team, remove=False)
                self._hub.drop_team(team)
        self._loop.at(time.monotonic() + _RETRY_S, self._connect)

    def _say(self, head: Head, tail: bytes = b"") -> None:
        if self._channel is None:
            return
        try:
            team_calls.send(self._channel, head, tail)
            if self._channel.pending:
                self._watch()
        except OSError as error:
            reason = str(error)
            self._loop.at(time.monotonic(), lambda: self._lost(reason))

    def _watch(self) -> None:
        if self._channel is not None:
            pending = self._channel.pending
            self._loop.change(self._channel.socket.fileno(), READ | WRITE if pending else READ)

    def _beat(self) -> None:
        """Say that this process gets on: called by the loop, which is what might not."""
        self._say(
            {
                "beat": {
                    "agents": self._hub.live_agents + 1,
                    "queue_depth": len(self._hub.running),
                    "spawner": "up" if self._link.up else "down",
                    "messages": self._messages.report(),
                }
            }
        )
        self._loop.at(time.monotonic() + BEAT_S, self._beat)

    # Calls

    def _begin(self, head: Head, payload: bytes) -> None:
        ask = head["ask"]
        order = TeamOrder.from_json(head["order"])
        self._host.begin(
            order,
            payload,
            begun=lambda at_s: self._say({"ask": ask, "begun": at_s}),
            done=lambda outcome: self._say({"ask": ask, "done": outcome.head()}, outcome.results),
            failed=lambda reason: self._say({"ask": ask, "failed": reason}),
        )

    def _give_up(self, head: Head, _tail: bytes) -> None:
        epoch = int(head["epoch"])
        self._host.give_up(epoch, str(head["reason"]), self._outcome_to(head["ask"]))
        self._answer_for_nothing(epoch, head["ask"])

    def _snapshot(self, head: Head, _tail: bytes) -> None:
        self._host.snapshot(int(head["epoch"]), self._outcome_to(head["ask"]))
        self._answer_for_nothing(int(head["epoch"]), head["ask"])

    def _answer_for_nothing(self, epoch: int, ask: int) -> None:
        """An order that has ended is not told of again, but the asker must not keep the question."""
        if epoch not in self._hub.running:
            self._say({"ask": ask})

    def _outcome_to(self, ask: int) -> Callable[[TeamOutcome], None]:
        return lambda outcome: self._say({"ask": ask, "outcome": outcome.head()}, outcome.results)

    def _stop_order(self, head: Head, _tail: bytes) -> None:
        self._host.stop(int(head["epoch"]), gently=bool(head["gently"]))

    def _open_team(self, head: Head, _tail: bytes) -> None:
        agents = [str(agent) for agent in head["agents"]]
        ask = head["ask"]
        self._host.open_team(
            head["swarm_id"],
            head["team"],
            int(head["shard"]),
            agents,
            lambda live: self._say({"ask": ask, "live": live}),
        )

    def _hand_over(self, head: Head, _tail: bytes) -> None:
        ask = head["ask"]
        self._host.hand_over(head["swarm_id"], head["team"], lambda: self._say({"ask": ask}))

    def _close_team(self, head: Head, _tail: bytes) -> None:
        ask = head["ask"]
        self._host.close_team(
            head["swarm_id"], head["team"], lambda undrained: self._say({"ask": ask, "undrained": undrained})
        )

    def _broadcast(self, head: Head, _tail: bytes) -> None:
        ask = head["ask"]
        self._host.broadcast(
            head["swarm_id"],
            head["team"],
            head["kind"],
            lambda sent, delivered: self._say({"ask": ask, "sent": sent, "delivered": delivered}),
        )

    def _roll(self, head: Head, _tail: bytes) -> None:
        ask = head["ask"]
        self._host.roll(
            head["swarm_id"], head["team"], lambda rows: self._say({"ask": ask}, json.dumps(rows).encode())
        )
