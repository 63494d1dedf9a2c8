"""The conductor: owns swarms, runs coordinations, answers clients, and is the hub of flat swarms.

One thread, one loop. A crash loses nothing: requests, claims, swarms and inboxes are in tmpfs, the
workers' sockets with the spawner. A clean stop drains, reports what is undelivered, and leaves
nothing to be replayed.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from cfn.config import Config, render_env
from cfn.config_follower import ConfigFollower, write_atomically
from cfn.engine import verbs
from cfn.engine.claims import Arenas
from cfn.engine.clients import Client, Clients
from cfn.engine.coordinations import MAX_QUEUED, MAX_RUNNING, Coordinations
from cfn.engine.directory import SwarmDirectory
from cfn.engine.files import replace
from cfn.engine.fleet import Fleet, message_bounds
from cfn.engine.guard import one_at_a_time, own_folder, serve_at
from cfn.engine.hosts import LocalHost
from cfn.engine.hub import Hub
from cfn.engine.log import log
from cfn.engine.loop import READ, Loop
from cfn.engine.messages.mesh import Mesh
from cfn.engine.messages.office import Messages
from cfn.engine.notify import Watchdog, notify
from cfn.engine.retention import Keeper, Removed, describe
from cfn.engine.spawner_link import SpawnerLink
from cfn.engine.swarms import Swarms
from cfn.engine.teams import LOCAL_HUB
from cfn.errors import RefusedError
from cfn.paths import Paths
from cfn.release import lab_fault, version

DRAIN_S = 3.0  # for running requests to end by themselves at a clean stop
END_S = 4.0  # for what still runs then to be stopped; the unit's TimeoutStopSec must exceed both
_POLL_S = 1.0  # of the configuration
_SWEEP_S = 5.0  # between two looks at what has outlived its retention


class Conductor:
    """The process's one object. Raises CfnError at start when it may not or cannot serve."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        fault = lab_fault(paths)
        requests, outputs = paths.shm / "requests", paths.outputs
        for folder in (paths.shm, paths.run, paths.state / "conductor", paths.claims, outputs, requests):
            own_folder(folder)
        self._lock = one_at_a_time(paths.shm / "conductor.lock", "conductor")
        self._generation = _next_generation(paths)
        self._follower = ConfigFollower(paths.config, paths.state / "conductor" / "config.last-good")
        self._render()
        self._loop = Loop()
        arenas = Arenas(paths.claims, outputs)
        self._link = SpawnerLink(self._loop, paths, self._generation, lambda: self.config.max_spawn_rate)
        self._hub = Hub(
            self._loop, self._link, arenas, outputs=str(outputs), bus=str(paths.bus_socket(LOCAL_HUB))
        )
        directory = SwarmDirectory()
        self.messages = Messages(
            self._loop,
            Mesh(self._loop, LOCAL_HUB, self._generation, paths.mesh_socket, self._other_hubs),
            bus=paths.bus_socket(LOCAL_HUB),
            folder=paths.shm / "inboxes",
            bounds=lambda: message_bounds(self.config),
            directory=directory,
        )
        self.fleet = Fleet(
            self._loop,
            paths,
            LocalHost(LOCAL_HUB, self._hub, self.messages),
            self.messages,
            directory,
            lambda: self.config,
            self._generation,
        )
        self.swarms = Swarms(
            paths.shm,
            self._loop,
            self.fleet,
            self._hub,
            self._generation,
            self._team_moved,
            self._release_workers,
        )
        self.coordinations = Coordinations(
            paths, self._loop, lambda: self.config, fault, self._generation, self.fleet, self.swarms, arenas
        )
        self.keeper = Keeper(
            paths,
            swarms=self.swarms_in_use,
            keys=lambda: self.coordinations.keys,
            requests=self.coordinations.sweep,
        )
        self._stopping_since: float | None = None
        self._reload = False
        self._watchdog = Watchdog()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._loop.add(self._wake_read, READ, self._woken)
        self.coordinations.replay()
        self.fleet.use(self)
        self._link.start(self._hub)
        self._link.retain(self.swarms_in_use())
        # Both before a coordinator comes: it would take for over what is not announced yet.
        self.swarms.restore()
        self.coordinations.pump()
        self._loop.at(time.monotonic() + _SWEEP_S, self._sweep)
        self._clients = Clients(
            self._loop, serve_at(paths.conductor_socket, socket.SOCK_STREAM), self._requested
        )
        if fault.slow_ms or fault.lose_pct:
            log("this release carries a lab fault", slow_ms=fault.slow_ms, lose_pct=fault.lose_pct)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._follower.config

    def run(self) -> None:
        """Serve until SIGTERM, then stop cleanly. Signal handlers only leave a note."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGINT, self._terminated)
        signal.signal(signal.SIGHUP, self._hung_up)
        notify("READY=1")
        log(
            "conductor started",
            pid=os.getpid(),
            generation=self._generation,
            release=version(),
            replayed=self.coordinations.counters.replayed,
        )
        polled_s = time.monotonic()
        while self._stopping_since is None:
            self._turn(self._watchdog.longest_wait_s)
            if self._reload or time.monotonic() - polled_s >= _POLL_S:
                polled_s = time.monotonic()
                self._poll_config()
        self._stop()

    def accepting(self) -> None:
        """Raises RefusedError while the conductor is stopping."""
        if self._stopping_since is not None:
            raise RefusedError("the conductor is stopping; ask again when it has started")

    def health(self) -> dict[str, object]:
        """How the engine stands."""
        counters = self.coordinations.counters
        coordinators = self.fleet.health()
        return {
            "pid": os.getpid(),
            "release": version(),
            "epoch": self._generation,
            "topology": self.config.topology,
            "max_agents": self.config.max_agents,
            "retention_s": self.config.retention_s,
            "swarms": [{"swarm_id": swarm.swarm_id, "agents": swarm.agents} for swarm in self.swarms.all],
            "agents_active": self._hub.live_agents + sum(int(row.get("agents", 0)) for row in coordinators),
            "open_requests": self.coordinations.open,
            "queue_depths": {"coordinations": self.coordinations.queued, "inboxes": self._queued_messages()},
            "bounds": {"running": MAX_RUNNING, "queued": MAX_QUEUED},
            "stored_bytes": self.coordinations.stored_bytes,
            "config_problem": self._follower.problem,
            "spawner": "up" if self._link.up else "down",
            "spawner_pid": self._link.pid if self._link.up else 0,
            "coordinators": coordinators,
            "failover_time_s": self.fleet.clock.last_s,
            "messages": self.messages.report(),
            "counters": {
                "accepted": counters.accepted,
                "completed": counters.completed,
                "refused": counters.refused,
                "replayed": counters.replayed,
                "repeated": counters.repeated,
                "failovers": self.fleet.failovers,
                "hangs": self.fleet.hangs,
                "agents": dict(counters.agents),
            },
        }

    def _queued_messages(self) -> int:
        reports = [self.messages.report(), *(host.get("messages", {}) for host in self.fleet.health())]
        return sum(report.get("queued_messages", 0) for report in reports)

    def _other_hubs(self) -> list[int]:
        return [] if self.config.topology == "flat" else list(range(1, self.config.coordinators + 1))

    # fleet.Owner

    def host_lost(self, number: int) -> int:
        """A coordinator is gone: its teams go to others, and so does what ran on them."""
        self.swarms.host_lost()
        moved = self.coordinations.host_lost(number)
        self._release_workers()
        return moved

    def host_joined(self) -> None:
        """A coordinator is there: what belongs to it goes home."""
        self.swarms.balance()

    def swarms_in_use(self) -> list[str]:
        """Every swarm that `init` made, and a request's own. What runs on a swarm ends with it."""
        return self.swarms.ids + self.coordinations.own_swarms

    def _release_workers(self) -> None:
        """Have the spawner let go of what no swarm needs: a hub that died cannot have said so."""
        self._link.retain(self.swarms_in_use())

    def _team_moved(self, swarm_id: str, team: str) -> None:
        self.coordinations.moved(swarm_id, team)

    # One turn

    def _turn(self, longest_s: float) -> None:
        self._loop.turn(longest_s)
        self.coordinations.pump()
        self._watchdog.feed()

    def _requested(self, client: Client, value: dict[str, object]) -> None:
        verbs.serve(self, client, value)
        self.coordinations.pump()

    def _woken(self, _events: int) -> None:
        os.read(self._wake_read, 4_096)

    def _terminated(self, *_: object) -> None:
        self._stopping_since = time.monotonic()

    def _hung_up(self, *_: object) -> None:
        self._reload = True

    def _sweep(self) -> None:
        self._release_workers()  # again: while the spawner was away, no word that a swarm is over reached it
        try:
            removed = self.keeper.sweep(self.config.retention_s)
            if removed != Removed():
                log("swept", what=describe(removed), journal_bytes=self.coordinations.stored_bytes)
        except OSError as error:
            log("cannot sweep", reason=str(error))
        self._loop.at(time.monotonic() + _SWEEP_S, self._sweep)

    def _poll_config(self) -> None:
        self._reload = False
        before = self._follower.problem
        if self._follower.poll():
            log("configuration changed", max_agents=self.config.max_agents, epoch=self.config.epoch)
            self._render()
            self._link.renew(self._generation)  # with its rate of forks
            self.fleet.settings_changed()
        if self._follower.problem and self._follower.problem != before:
            log("configuration problem", problem=self._follower.problem)

    def _render(self) -> None:
        try:
            write_atomically(self._paths.env, render_env(self.config), mode=0o640)
        except OSError as error:
            log("the environment cannot be rendered", path=str(self._paths.env), reason=str(error))

    # The end

    def _stop(self) -> None:
        """Drain, then give up what is not claimed, then stop what runs; every caller is told."""
        notify("STOPPING=1")
        open_requests = self.coordinations.open
        self._until(lambda: self.coordinations.open == 0, DRAIN_S)
        self.coordinations.give_up_all("the conductor was stopped")
        for swarm in self.swarms.all:
            self.swarms.shutdown(swarm, lambda _agents, _undrained: None)

        def over() -> bool:  # also what somebody was shutting down already
            return self.coordinations.open == 0 and not self.swarms.ids

        self.coordinations.stop_running(gently=True)
        self._until(over, END_S)
        self.coordinations.stop_running(gently=False)
        self._until(over, 1.0)
        self._link.retain([])
        self._until(lambda: False, 0.02)  # for that word to go out
        self._until(lambda: not self._clients.unsent, 1.0)
        self._clients.close()
        self.fleet.close()
        self.messages.close()
        self._paths.conductor_socket.unlink(missing_ok=True)
        agents = self.coordinations.counters.agents
        log(
            "conductor stopped",
            drained=open_requests,
            left_open=self.coordinations.open,
            undelivered=agents.get("undelivered", 0),
            unknown=agents.get("unknown", 0),
        )

    def _until(self, satisfied: Callable[[], bool], limit_s: float) -> None:
        limit = time.monotonic() + limit_s
        while not satisfied() and time.monotonic() < limit:
            self._turn(0.05)


def _next_generation(paths: Paths) -> int:
    """The conductor's generation: higher than any before it since boot. Call with the lock held."""
    path = paths.shm / "generation"
    try:
        generation = int(path.read_text()) + 1
    except (FileNotFoundError, ValueError):
        # Lost or never there: the clock is ahead of any count, and workers refuse lower ones.
        generation = int(time.time())
    text = str(generation)
    try:
        replace(path, text)
    except OSError as error:  # no room for a second file: over the old one, which has its page
        log("the count of generations is overwritten", reason=str(error))
        with suppress(OSError), path.open("r+") as file:
            file.write(text)
    return generation
