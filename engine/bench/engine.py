"""The engine that is measured: asked at its conductor's socket, configured as an operator would.

Where it runs, in a lab's host or as plain processes, is the business of deployed.py and local.py.
"""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cfn.client import Client
from cfn.config import edit
from cfn.errors import CfnError
from cfn.paths import Paths
from engine.bench import processes
from engine.bench.processes import Process

READY_S = 30.0
MAX_AGENTS = 2_000
COORDINATORS = 7
TOPOLOGIES = ("flat", "hybrid")


class RefusedError(Exception):
    """The engine does not do what a row needs; the text says why."""


class Place(Protocol):
    """Where an engine runs."""

    paths: Paths  # as seen from here
    namespace: int  # inode of the process-id namespace of its processes
    environment: bytes  # a line that only its processes have in their environment, or empty
    commands: str  # the folder of message-bus.sh, as seen there

    def argv(self, words: Sequence[str]) -> list[str]:
        """What runs a command where the engine is."""
        ...

    def restart_conductor(self) -> None:
        """Stop the conductor cleanly and start it again."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One coordination: milliseconds to the last acknowledgement, to the last result (both as the
    conductor says them), and until the caller had read the answer."""

    acknowledged_ms: float
    ended_ms: float
    answered_ms: float


class Engine:
    """One running engine."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.paths = place.paths
        # Results stay for a day: a second run on the same host must not ask for the same tasks.
        self._tasks = (f"bench-{time.time_ns():x}-{number}" for number in itertools.count())
        self._configuration: dict[str, str] = {}

    def task_id(self) -> str:
        """A task that was never asked for."""
        return next(self._tasks)

    def ask(self, request: Mapping[str, object], timeout_s: float | None = None) -> dict[str, Any]:
        """The final answer to one request. Raises NotRunningError; an error is returned as it is."""
        with Client(self.paths.conductor_socket, timeout_s=timeout_s) as client:
            return client.final(request)

    def need(self, verb: str, **fields: object) -> dict[str, Any]:
        """As `ask`. Raises RefusedError with the engine's own words if the answer is an error."""
        try:
            answer = self.ask({"verb": verb, **fields})
        except CfnError as error:
            raise RefusedError(str(error)) from error
        if "error" in answer:
            raise RefusedError(str(answer["error"]))
        return answer

    def health(self) -> dict[str, Any]:
        """The health report, or {} while nobody answers."""
        try:
            return self.ask({"verb": "health"}, READY_S)
        except CfnError:
            return {}

    def coordinate(self, agents: int, swarm_id: str = "") -> Sample:
        """One coordination that must succeed on every agent. Raises RefusedError if it does not."""
        swarm = {"swarm_id": swarm_id} if swarm_id else {}
        began = time.perf_counter()
        answer = self.need("coordinate", task_id=self.task_id(), agents=agents, **swarm)
        answered_ms = (time.perf_counter() - began) * 1_000
        if answer["states"]["done"] != agents:
            raise RefusedError(f"not all of {agents} agents are done: {answer['states']}")
        sample = Sample(answer["coordination_time_ms"], answer["total_time_ms"], answered_ms)
        if not 0 < sample.acknowledged_ms <= sample.ended_ms <= sample.answered_ms:
            raise RefusedError(f"the times make no sense: {sample}")
        return sample

    def use(self, **configuration: str) -> None:
        """Put keys of the configuration in force by a clean restart, which also ends all swarms.

        Blocks until the engine is ready. Raises RefusedError if it does not run the topology.
        """
        wanted = {"CFN_AGENT_COMMAND": "", **configuration}
        if wanted == self._configuration:
            return
        self._configuration = {}  # until it is in force
        text = self.paths.config.read_text() if self.paths.config.exists() else ""
        # In place, as an operator's editor would: the file keeps its owner and mode.
        self.paths.config.write_text(edit(text, wanted))
        self.place.restart_conductor()
        self.until(self.ready, "the engine is not ready after a restart")
        found = self.health()
        if found.get("topology") != wanted["CFN_TOPOLOGY"]:
            raise RefusedError(found.get("config_problem") or f"topology is {found.get('topology')}")
        self._configuration = wanted

    def ready(self) -> bool:
        """Whether spawner and every coordinator that health names are up."""
        health = self.health()
        return health.get("spawner") == "up" and all(
            coordinator["state"] == "up" for coordinator in health.get("coordinators", ())
        )

    def init(self, agents: int) -> str:
        """Make a swarm that is kept; returns its id. Raises RefusedError if it is not whole."""
        answer = self.need("init", agents=agents)
        if answer["live"] != agents:
            raise RefusedError(f"{answer['live']} of {agents} agents live: {answer.get('reason')}")
        return str(answer["swarm_id"])

    def shutdown(self, swarm_id: str) -> None:
        """End a kept swarm, and wait until its processes are gone."""
        self.need("shutdown", swarm_id=swarm_id)
        self.rest()

    def processes(self) -> list[Process]:
        """Every process of this engine. Blocks while there is no spawner to tell from its workers."""
        health: dict[str, Any] = {}

        def known() -> bool:
            health.update(self.health())
            return health.get("spawner") == "up"

        self.until(known, "the engine has no spawner")
        return list(processes.find(self.place.namespace, self.place.environment, health["spawner_pid"]))

    def rest(self) -> None:
        """Block until no worker lives: a cold coordination starts its own, and none is kept in store."""
        self.until(
            lambda: not any(process.role == "worker" for process in self.processes()),
            "workers live though no swarm needs them",
        )

    def kill(self, process: Process, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process."""
        os.kill(process.pid, number)

    def run_ms(self, words: Sequence[str]) -> float:
        """How long a command takes where the engine is, from its start to its end, as bash sees it.

        Raises RefusedError if it fails.
        """
        script = 'a=$EPOCHREALTIME; "$@" >/dev/null || exit; b=$EPOCHREALTIME; echo "${a/,/.} ${b/,/.}"'
        done = subprocess.run(
            self.place.argv(["bash", "-c", script, "bench", *words]),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RefusedError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        began_s, ended_s = map(float, done.stdout.split())
        return (ended_s - began_s) * 1_000

    def until(self, satisfied: Callable[[], bool], problem: str, limit_s: float = READY_S) -> None:
        """Block until it is so. Raises RefusedError with `problem` after a while."""
        ends = time.monotonic() + limit_s
        while not satisfied():
            if time.monotonic() > ends:
                raise RefusedError(f"{problem} ({limit_s:.0f} s)")
            time.sleep(0.02)


def base_configuration() -> dict[str, str]:
    """The keys that every measured engine has: as many agents as the largest row."""
    return {
        "CFN_TOPOLOGY": "hybrid",
        "CFN_MAX_AGENTS": str(MAX_AGENTS),
        "CFN_COORDINATORS": str(COORDINATORS),
    }
