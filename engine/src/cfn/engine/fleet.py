"""The conductor's hosts: its own hub and the coordinators that are connected to it.

A coordinator that closes its connection is dead, one that is silent for too long hangs and is killed:
it is never bypassed while it may still act. Its teams then go to others, and come home when it is back.
"""

import json
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from cfn.config import Config
from cfn.engine import placement, team_calls
from cfn.engine.clients import ACCEPT_AGAIN_S
from cfn.engine.directory import SwarmDirectory, TeamPlace
from cfn.engine.failover_clock import FailoverClock
from cfn.engine.guard import serve_at
from cfn.engine.hosts import Host, LocalHost
from cfn.engine.lean.control import Channel, own_peer
from cfn.engine.log import log
from cfn.engine.loop import READ, Loop
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.office import Messages
from cfn.engine.remote_host import RemoteHost
from cfn.engine.request_log import TeamPlan
from cfn.engine.teams import LOCAL_HUB, NO_HOST
from cfn.errors import DamagedError, RefusedError
from cfn.paths import Paths

HANG_S = 3.0  # without a heartbeat: dead for all that it is good for
BEAT_S = 0.5
_LOOK_S = 0.25
_GATHER_S = 1.0  # after the start, for coordinators to come: each may have teams already


def message_bounds(config: Config) -> MessageBounds:
    """The bounds of messages that a configuration sets."""
    return MessageBounds(
        max_payload_bytes=config.max_payload_bytes,
        max_inbox_messages=config.max_inbox_messages,
        inbox_wait_ms=config.inbox_wait_ms,
        max_sender_rate_per_s=config.max_sender_rate_per_s,
        max_queued_messages=config.max_queued_messages,
        max_queued_bytes=config.max_queued_mb << 20,
    )


class Owner(Protocol):
    """Who has given teams to hosts, and must hear when one comes or goes."""

    def host_lost(self, number: int) -> int:
        """A coordinator is gone; how many running parts went elsewhere."""

    def host_joined(self) -> None:
        """A coordinator is there (again)."""

    def swarms_in_use(self) -> Iterable[str]:
        """The swarms whose teams hosts must keep."""


class Fleet:
    """All hosts by number; 0 is the conductor's own. `owner` is set once, before coordinators come."""

    def __init__(
        self,
        loop: Loop,
        paths: Paths,
        local: LocalHost,
        messages: Messages,
        directory: SwarmDirectory,
        config: Callable[[], Config],
        generation: int,
    ) -> None:
        self.directory = directory
        self.messages = messages
        self._loop = loop
        self._config = config
        self._generation = generation
        self.local = local
        self._hosts: dict[int, RemoteHost] = {}
        self._placed: dict[tuple[str, str], int] = {}  # swarm and team: host
        self._greeting: dict[int, Channel] = {}
        self._draining: set[int] = set()
        self._given_over: set[int] = set()  # by hand, where failover is switched off
        self._gathered_s = time.monotonic() + _GATHER_S
        self._moving: set[tuple[str, str]] = set()
        self._failovers: dict[int, int] = {}
        self._owner: Owner | None = None
        self.clock = FailoverClock()
        self.failovers = 0
        self.hangs = 0
        self._path = paths.coordinators_socket
        self._listener = serve_at(self._path, socket.SOCK_SEQPACKET)
        loop.add(self._listener.fileno(), READ, self._accept)

    def use(self, owner: Owner) -> None:
        """Tell this owner from now on."""
        self._owner = owner
        self._look_due()

    # Hosts

    @property
    def healthy(self) -> list[int]:
        """The coordinators that may be given teams: one that the configuration has no more is left."""
        most = self._config().coordinators
        return sorted(number for number in self._hosts if number not in self._draining and number <= most)

    @property
    def gathering(self) -> bool:
        """The conductor has just started, and coordinators that live may not have come yet."""
        return time.monotonic() < self._gathered_s

    def host(self, number: int) -> Host | None:
        """A host that is there."""
        return self.local if number == LOCAL_HUB else self._hosts.get(number)

    def coordinators_for(self, agents: int) -> int:
        """How many teams a new swarm of this size is to have; 0 for a flat one."""
        config = self._config()
        if config.topology == "flat":
            return 0
        count = config.coordinators if self.gathering else len(self.healthy) or 1
        return placement.coordinators_for(agents, count)

    def host_at(self, swarm_id: str, team: str) -> Host | None:
        """Who has a team now."""
        if team == placement.GUESTS:
            return self.local
        return self.host(self._placed.get((swarm_id, team), NO_HOST))

    def host_of(self, swarm_id: str, team: str, shard: int) -> Host | None:
        """Who has a team, chosen now if nobody has. None: ask again, it is on its way to another host,
        or its coordinator is down and failover is switched off."""
        if (swarm_id, team) in self._moving:
            return None
        number = self._placed.get((swarm_id, team))
        found = None if number is None else self.host(number)
        if found is None:
            number = self.choose(shard)
            if number is None:
                return None
            self._placed[swarm_id, team] = number
            found = self.host(number)
        return found

    def placed(self, swarm_id: str, team: str) -> int | None:
        """The number of the host that has a team, if one has."""
        return self._placed.get((swarm_id, team))

    def move(self, swarm_id: str, team: str, number: int, moved: Callable[[], None]) -> None:
        """Have a team handed over to another host; `moved` is called when the first has let go."""
        key = (swarm_id, team)
        source = self.host(self._placed.get(key, NO_HOST))
        if source is None or key in self._moving:
            return
        self._moving.add(key)

        def dropped() -> None:
            self._moving.discard(key)
            if self.host(number) is not None:
                self._placed[key] = number
            else:
                self._placed.pop(key, None)
            moved()

        source.hand_over(swarm_id, team, dropped)

    def answer_for_ended(self, swarm_id: str, team: str) -> None:
        """A team had ended on a host that is gone: what is still written to it comes here."""
        self._placed[swarm_id, team] = LOCAL_HUB
        self.messages.team_ended(swarm_id, team)

    def forget(self, swarm_id: str, team: str) -> None:
        """A team is gone."""
        self._placed.pop((swarm_id, team), None)
        self.served(swarm_id, team)

    def served(self, swarm_id: str, team: str) -> None:
        """A team's workers have a hub (again), or the team is gone."""
        self.clock.served((swarm_id, team), time.monotonic())

    def choose(self, shard: int) -> int | None:
        """The number of the host that a team is to have, by the team's shard; None: nobody yet."""
        config = self._config()
        if shard == 0 or config.topology == "flat":
            return LOCAL_HUB
        healthy = self.healthy
        if shard in healthy:
            return shard
        if self.gathering and len(self._hosts) < config.coordinators:
            return None
        if not config.coordinator_failover and shard not in self._given_over | self._draining:
            return None
        if not healthy:
            return LOCAL_HUB
        return placement.least_loaded({number: self._hosts[number].workers for number in healthy})

    # Coordinators come and go

    def _accept(self, _events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor left: they are served when one is free
            log("coordinator not accepted", reason=str(error))
            self._loop.pause(self._listener.fileno(), READ, self._accept, ACCEPT_AGAIN_S)
            return
        try:
            own_peer(connection)
        except DamagedError as error:
            log("coordinator refused", reason=str(error))
            connection.close()
            return
        channel = Channel(connection)
        descriptor = connection.fileno()
        self._greeting[descriptor] = channel
        self._loop.add(descriptor, READ, lambda _events: self._greeted(descriptor))

    def _greeted(self, descriptor: int) -> None:
        channel = self._greeting.pop(descriptor)
        try:
            received = channel.receive()
            if received is None:
                self._greeting[descriptor] = channel
                return
            head, _ = team_calls.decode(received[0])
            number, pid = int(head["hello"]), own_peer(channel.socket)
            teams = [(str(swarm_id), str(team)) for swarm_id, team in head["teams"]]
            if not 1 <= number <= 32 or number in self._hosts:
                raise DamagedError(f"coordinator {number} is there already, or is none")
            host = RemoteHost(number, pid, channel, self._loop, self._gone)
        except (OSError, EOFError, *team_calls.MALFORMED) as error:
            log("coordinator refused", reason=str(error))
            self._loop.remove(descriptor)
            channel.close()
            return
        self._loop.remove(descriptor)
        self._loop.add(descriptor, READ, host.ready)
        self._joined(host, teams)

    def _joined(self, host: RemoteHost, teams: Iterable[tuple[str, str]]) -> None:
        self._hosts[host.number] = host
        for key in teams:
            self._placed.setdefault(key, host.number)
        self._given_over.discard(host.number)
        in_use = list(self._owner.swarms_in_use()) if self._owner is not None else []
        directory = {swarm_id: self._listed(swarm_id) for swarm_id in self.directory.swarms}
        host.tell(
            {
                "welcome": self._generation,
                "settings": self._settings(),
                "swarms": in_use,
                "teams": [list(key) for key, number in self._placed.items() if number == host.number],
                "directory": True,
            },
            _directory(directory),
        )
        log("coordinator connected", coordinator=host.number, pid=host.pid)
        if self._owner is not None:
            self._owner.host_joined()

    def _gone(self, host: RemoteHost, reason: str) -> None:
        self._hosts.pop(host.number, None)
        lost = self._teams_of(host.number)
        self.clock.lost(lost, host.heard_s)
        for key in lost:
            del self._placed[key]
            self._moving.discard(key)
        moved = self._owner.host_lost(host.number) if self._owner is not None else 0
        self.failovers += 1
        self._failovers[host.number] = self._failovers.get(host.number, 0) + 1
        log("coordinator lost", coordinator=host.number, pid=host.pid, reason=reason, parts_moved=moved)

    def _teams_of(self, number: int) -> list[tuple[str, str]]:
        return [key for key, at in self._placed.items() if at == number]

    def _look_due(self) -> None:
        self._looked_s = time.monotonic()
        self._loop.at(self._looked_s + _LOOK_S, self._look)

    def _look(self) -> None:
        """End who hangs. Not when this process itself was late: then their heartbeats wait unread."""
        now_s = time.monotonic()
        late = now_s - self._looked_s > 2 * _LOOK_S
        for host in list(self._hosts.values()):
            if not late and now_s - host.heard_s > HANG_S:
                log("coordinator hangs", coordinator=host.number, pid=host.pid, silent_s=now_s - host.heard_s)
                self.hangs += 1
                host.kill()
                host.close(f"it was silent for {HANG_S:.0f} s and was killed")
        self._look_due()

    # What every host knows

    def announce(self, swarm_id: str, teams: Iterable[TeamPlan], guests: Iterable[str] = ()) -> None:
        """Say where a swarm's teams are, so that its agents' messages find their way; without teams it
        is over. What is for a team that has no host yet waits."""
        places = [
            TeamPlace(
                team=team.team,
                hub=self._placed.get((swarm_id, team.team), NO_HOST),
                first=team.first,
                count=team.count,
                named=team.named,
            )
            for team in teams
        ]
        if guests:
            places.append(TeamPlace(team=placement.GUESTS, hub=LOCAL_HUB, named=tuple(guests)))
        self.directory.set(swarm_id, places)
        if not places:
            self.messages.forget_ended(swarm_id)
        self.messages.moved()
        self._tell_all({"directory": True}, _directory({swarm_id: self._listed(swarm_id)}))

    def settings_changed(self) -> None:
        """The configuration is another one."""
        self._tell_all({"settings": self._settings()})
        if self._owner is not None:
            self._owner.host_joined()  # or left: what belongs elsewhere now goes there

    def _listed(self, swarm_id: str) -> list[dict[str, Any]]:
        return [place.as_json() for place in self.directory.places(swarm_id)]

    def _settings(self) -> dict[str, Any]:
        config = self._config()
        return {
            "spawn_rate": config.max_spawn_rate,
            "hubs": list(range(config.coordinators + 1)),
            "bounds": asdict(message_bounds(config)),
        }

    def _tell_all(self, head: dict[str, Any], tail: bytes = b"") -> None:
        for host in self._hosts.values():
            host.tell(head, tail)

    # By hand

    def fail_over(self, number: int) -> None:
        """Take everything from a coordinator, alive or not: it is ended, and its teams go to others.
        Raises RefusedError for one that is unknown."""
        self._check(number)
        self._given_over.add(number)
        host = self._hosts.get(number)
        if host is not None:
            host.kill()
            host.close("it was failed over by hand")

    def drain(self, number: int) -> None:
        """Give a coordinator no more teams, and move those that it has. Raises RefusedError."""
        self._check(number)
        self._draining.add(number)
        # Kept swarms' teams move; a request's own stay until they end, and are served meanwhile.
        kept = [key for key in self._teams_of(number) if not key[0].startswith("task:")]
        self.clock.lost(kept, time.monotonic())

    def resume(self, number: int) -> None:
        """The end of a drain. Raises RefusedError."""
        self._check(number)
        self._draining.discard(number)

    def when_settled(self, told: Callable[[], None]) -> None:
        """Call when no team is on its way to another host."""
        if self._moving:
            self._loop.at(time.monotonic() + 0.005, lambda: self.when_settled(told))
        else:
            told()

    def _check(self, number: int) -> None:
        known = set(self._hosts) | set(range(1, self._config().coordinators + 1))
        if self._config().topology == "flat" or number not in known:
            raise RefusedError(
                f"coordinator {number} is unknown here; known: {', '.join(map(str, sorted(known)))}"
            )

    # Health

    def health(self) -> list[dict[str, Any]]:
        """Each coordinator that is configured or connected."""
        config = self._config()
        expected = set() if config.topology == "flat" else set(range(1, config.coordinators + 1))
        now_s = time.monotonic()
        rows: list[dict[str, Any]] = []
        for number in sorted(expected | set(self._hosts)):
            host = self._hosts.get(number)
            row: dict[str, Any] = {"id": number, "state": "down", "failovers": self._failovers.get(number, 0)}
            if host is not None:
                silent_s = now_s - host.heard_s
                state = "draining" if number in self._draining else "up"
                row |= {
                    **host.beat,  # half a second old at most: what is known here comes after it
                    "state": "hung" if silent_s > 2 * BEAT_S else state,
                    "pid": host.pid,
                    "agents": host.workers + 1,
                    "last_heartbeat_age_s": round(silent_s, 3),
                    "response_time_ms": round(host.response_time_s * 1000, 3),
                }
            rows.append(row)
        return rows

    def close(self) -> None:
        """No coordinator any more; those that are connected find out."""
        self._owner = None
        with suppress(OSError):
            self._loop.remove(self._listener.fileno())
            self._listener.close()
        self._path.unlink(missing_ok=True)
        for host in list(self._hosts.values()):
            host.close("the conductor stops")


def _directory(swarms: dict[str, list[dict[str, Any]]]) -> bytes:
    return json.dumps(swarms, separators=(",", ":")).encode()
