"""The life of the router: start, serve, follow the configuration, drain, end."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import web

from cfn import release
from cfn.config import render_env
from cfn.config_follower import ConfigFollower, write_atomically
from cfn.engine.log import log
from cfn.engine.notify import notify, watchdog_interval_s
from cfn.paths import Paths
from cfn.router import direct, sockets
from cfn.router.answers import AnswerStore
from cfn.router.breaker_keeper import BreakerKeeper
from cfn.router.connections import Connections, connection_limit
from cfn.router.engine_watch import EngineWatch
from cfn.router.events import EventLog
from cfn.router.gate import WAITING_PER_SLOT
from cfn.router.generation import Generation, GenerationBook, generation_event
from cfn.router.http import application
from cfn.router.service import Service
from cfn.router.stats import Stats
from cfn.router.v1 import V1
from cfn.router.v2 import V2

POLL_S = 0.2
BACKLOG = 4_096
# Beside the events, in the same form: what the router did that is no coordination under the split.
NOTES = "router-events.jsonl"
DRAIN_S = 10.0


class Router:
    """One router on one host's tree. `run` blocks until `stop` is set."""

    def __init__(self, paths: Paths) -> None:
        state = paths.state / "router"
        for folder in (state, paths.run, paths.log):
            folder.mkdir(parents=True, exist_ok=True)
        self._paths = paths
        self._host = socket.gethostname()
        self._release = release.version()
        self._follower = ConfigFollower(paths.config, state / "config.last-good")
        self._book = GenerationBook(state / "generation.json")
        self._events = EventLog(paths.events)
        self._env_problem = ""
        self._v2 = V2(paths.conductor_socket)
        self._engine = EngineWatch(self._v2)
        self._notes = EventLog(paths.log / NOTES)
        self._breaker = BreakerKeeper(state / "breaker.json", self._note)
        self.server: web.Server | None = None
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self.service = Service(
            generation=self._put_in_force(None),
            v1=V1(paths),
            v2=self._v2,
            events=self._events,
            notes=self._notes,
            breaker=self._breaker,
            engine=self._engine,
            answers=AnswerStore(state / "answers.journal"),
            stats=Stats(),
            direct_answers=direct.folder(paths),
            host=self._host,
            release=self._release,
        )
        self.service.stats.put_in_force(self.service.generation)

    async def run(self, given: list[socket.socket]) -> None:
        """Serve on the sockets `given` (see cfn.router.sockets) and on those that are missing."""
        listening = sockets.listeners(
            self._paths.router_socket, self.service.generation.config.router_port, given
        )
        connections = Connections(limit=connection_limit())
        runner = web.AppRunner(
            application(self.service, connections, self.status), access_log=None, shutdown_timeout=DRAIN_S
        )
        await runner.setup()
        self.server = server = cast(web.Server, runner.server)
        self.service.resume()
        direct.sweep(direct.folder(self._paths), self.service.generation.config.retention_s, time.time())
        beside = [
            asyncio.create_task(self._engine.run(), name="engine watch"),
            asyncio.create_task(connections.watch(server), name="connections"),
        ]
        try:
            for listener in listening:
                await web.SockSite(runner, listener.socket, backlog=BACKLOG).start()
            notify("READY=1")
            log(
                "router-ready",
                pid=os.getpid(),
                release=self._release,
                generation=self.service.generation.number,
            )
            await self._follow()
        finally:
            notify("STOPPING=1")
            ends_s = time.monotonic() + DRAIN_S
            for task in beside:
                task.cancel()
            await runner.cleanup()
            await self.service.drain(max(0.0, ends_s - time.monotonic()))
            for listener in listening:
                sockets.close(listener)
            self._events.close()
            self._notes.close()
            self.service.answers.close()
            log("router-ended", pid=os.getpid())

    async def _follow(self) -> None:
        """Each tick: take up a changed configuration, and feed the watchdog."""
        watchdog_s = watchdog_interval_s()
        fed_s = 0.0
        while not self.stop.is_set():
            self._tick()
            if watchdog_s and time.monotonic() - fed_s >= watchdog_s / 2:
                notify("WATCHDOG=1")
                fed_s = time.monotonic()
            waits = [asyncio.create_task(self.stop.wait()), asyncio.create_task(self.reload.wait())]
            await asyncio.wait(waits, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            self.reload.clear()

    def _tick(self) -> None:
        problem_before = self.config_problem
        if self._follower.poll():
            generation = self._put_in_force(self.service.generation)
            self.service.generation = generation
            self.service.stats.put_in_force(generation)
        if silent_s := self._engine.silent_s:
            self._breaker.silent(silent_s)
        if self.config_problem != problem_before:
            log("config-problem", problem=self.config_problem or "none any more")

    def _put_in_force(self, before: Generation | None) -> Generation:
        """Number the configuration, record it and render it for units and bash."""
        config = self._follower.config
        generation, new = self._book.put_in_force(config, time.time())
        for records in (self._events, self._notes):
            records.max_bytes, records.parts = config.events_size_mb << 20, config.events_parts
        if new:
            self._events.append(generation_event(generation, host=self._host, release=self._release))
            log(
                "generation",
                generation=generation.number,
                version=config.coordination_version,
                traffic_pct=generation.traffic_pct,
                epoch=config.epoch,
                before=before.number if before else None,
            )
        self._breaker.follow(config, generation=generation.number)
        self._engine.want(config.coordination_version == "v2" and config.traffic_pct > 0)
        try:
            write_atomically(self._paths.env, render_env(config), mode=0o640)
            self._env_problem = ""
        except OSError as error:
            self._env_problem = f"{self._paths.env} cannot be written: {error.strerror}"
        return generation

    def _note(self, record: Mapping[str, Any]) -> None:
        self._notes.append({"v": 1, "host": self._host, "release": self._release, **record})

    @property
    def config_problem(self) -> str:
        """What is wrong with the configuration or with keeping it; "" if nothing is."""
        return "; ".join(filter(None, (self._follower.problem, self._book.problem, self._env_problem)))

    def status(self) -> dict[str, Any]:
        """The object of `/status` (docs/reference/router.md)."""
        generation = self.service.generation
        v1 = self.service.v1
        capacity_per_s = v1.capacity_per_s(generation.config)
        return {
            "pid": os.getpid(),
            "host": self._host,
            "release": self._release,
            "generation": generation.number,
            "since": generation.since,
            "version": generation.config.coordination_version,
            "traffic_pct": generation.traffic_pct,
            "epoch": generation.config.epoch,
            "max_agents": generation.config.max_agents,
            "config_problem": self.config_problem,
            **self.service.stats.as_json(),
            "earlier_in_flight": self.service.earlier_in_flight,
            "v1": {
                "enabled": generation.config.v1_enabled,
                "running": v1.gate.running,
                "waiting": v1.gate.waiting,
                "concurrency": generation.config.v1_concurrency,
                "queue": generation.config.v1_concurrency * WAITING_PER_SLOT,
                "capacity_per_s": None if capacity_per_s is None else round(capacity_per_s, 3),
                "capacity_declared": generation.config.v1_capacity_per_s > 0,
            },
            "breaker": self._breaker.as_json(),
            "engine": {"silent_s": round(self._engine.silent_s, 3), "problem": self._engine.problem},
            "shadow": dict(self.service.shadow.results),
            "events_lost": self._events.lost + self._notes.lost,
            "events_problem": self._events.problem or self._notes.problem,
            "answers_lost": self.service.answers.lost,
        }


async def serve(paths: Paths) -> None:
    """Run the router until SIGTERM or SIGINT; SIGHUP reads the configuration at once."""
    given = sockets.passed(os.environ, os.getpid())
    sockets.clear_environment()
    router = Router(paths)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, router.stop.set)
    loop.add_signal_handler(signal.SIGHUP, router.reload.set)
    with contextlib.suppress(asyncio.CancelledError):
        await router.run(given)
