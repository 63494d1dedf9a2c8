"""One coordination, or a few, for each state: led there, struck there, answered."""

import base64
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from cfn.client import Client
from cfn.engine.lean import records
from cfn.engine.lean.records import RECORD_BYTES
from cfn.errors import CfnError
from engine.tests.engine.harness import Engine, coordinator_names

from .callers import Callers
from .faults import Faults
from .report import SEEN_S, Report
from .view import View

_HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))
    print(flush=True)
    sys.stdin.read()
"""


class Scenarios:
    """Goes through states so that each has as many faults as any other."""

    def __init__(
        self,
        engine: Engine,
        report: Report,
        view: View,
        faults: Faults,
        callers: Callers,
        draw: random.Random,
        states: Sequence[str],
    ) -> None:
        self.sent: dict[tuple[str, str], set[str]] = defaultdict(set)  # swarm and agent: bodies of messages
        self.received: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.chosen = dict.fromkeys(states, 0)
        self._engine = engine
        self._report = report
        self._view = view
        self._faults = faults
        self._callers = callers
        self._random = draw
        self._aim = {
            "idle": self._idle,
            "accepted": self._accepted,
            "queued": self._queued,
            "open": self._open,
            "locked": self._locked,
            "ended, not reported": self._ended_not_reported,
            "told": self._told,
            "handed over": self._after_event,
            "coming home": self._after_event,
            "replaying": self._after_event,
            "adopting": self._after_event,
            "failing over by hand": self._by_hand,
            "draining": self._by_hand,
            "revoking": self._revoking,
            "deadline": self._deadline,
            "swarm being made": self._made,
            "swarm being closed": self._closed,
            "message in flight": self._messages,
            "broadcast in flight": self._broadcast,
        }

    def run(self, state: str) -> None:
        """Do what leads to a state."""
        self._aim.get(state, self._seen)(state)

    def next_state(self) -> str:
        with self._report.lock:
            least = min(self.chosen.values())
            state = self._random.choice([s for s, number in self.chosen.items() if number == least])
            self.chosen[state] += 1
            return state

    def _miss(self, state: str) -> None:
        with self._report.lock:
            self._report.missed[state] += 1
            self.chosen[state] -= 1

    def _seen(self, state: str) -> None:
        """The states that show in the slots."""
        open_, claimed, ended = records.OPEN, records.CLAIMED, records.ENDED
        wanted: Mapping[str, Callable[[list[int]], bool]] = {
            "spawning": lambda kinds: open_ in kinds and any(kind != open_ for kind in kinds),
            "running": lambda kinds: claimed in kinds,
            "partly ended": lambda kinds: ended in kinds and claimed in kinds,
            "completing": lambda kinds: all(kind == ended for kind in kinds),
        }
        pause_s = {"running": 0.1, "partly ended": 0.02, "completing": 0.03}.get(state, 0.02)
        task, request = self._callers.request(pause_s=pause_s, flat=state == "spawning")
        if state == "spawning":
            request["agents"] = self._callers.sizes[1]
        with self._callers.asking(task, request):
            if self._view.until(task, wanted[state]):
                self._faults.strike(state, task=task)
            else:
                self._miss(state)

    def _idle(self, state: str) -> None:
        task, request = self._callers.request()
        self._faults.strike(state)
        self._callers.ask(task, request)

    def _accepted(self, state: str) -> None:
        task, request = self._callers.request()
        self._callers.ask(task, request, accepted=lambda: self._faults.strike(state))

    def _told(self, state: str) -> None:
        task, request = self._callers.request()
        self._callers.ask(task, request)
        self._faults.strike(state)
        again = self._engine.ask(verb="coordinate", task_id=task.task_id, **request)
        if again != task.answer:
            self._report.problem(f"{task.task_id}: after a fault the answer is another one")

    def _queued(self, state: str) -> None:
        tasks = [self._callers.request(pause_s=0.1) for _ in range(5)]
        with (
            self._callers.asking(*tasks[0]),
            self._callers.asking(*tasks[1]),
            self._callers.asking(*tasks[2]),
            self._callers.asking(*tasks[3]),
            self._callers.asking(*tasks[4]),
        ):
            limit = time.monotonic() + SEEN_S
            while time.monotonic() < limit:
                health = self._engine.ask(verb="health")
                if health["queue_depths"]["coordinations"]:
                    self._faults.strike(state)
                    return
                if all(task.answer is not None for task, _ in tasks):
                    break
            self._miss(state)

    def _open(self, state: str) -> None:
        swarm_id, descriptor = self._faults.stop_one(self._callers.kept)
        task, request = self._callers.on_kept(swarm_id)
        try:
            with self._callers.asking(task, request):
                if self._view.until(task, lambda kinds: kinds.count(records.OPEN) == 1):
                    self._faults.strike(state, task=task)
                else:
                    self._miss(state)
                time.sleep(0.02)
                self._faults.resume(descriptor)
                descriptor = -1
        finally:
            self._faults.resume(descriptor)

    def _locked(self, state: str) -> None:
        swarm_id, descriptor = self._faults.stop_one(self._callers.kept)
        task, request = self._callers.on_kept(swarm_id)
        try:
            with self._callers.asking(task, request):
                if not self._view.until(task, lambda kinds: kinds.count(records.OPEN) == 1):
                    self._miss(state)
                    return
                opened = [s for s, r in self._view.slots(task) if r is not None and r.kind == records.OPEN]
                if not opened:
                    self._miss(state)
                    return
                slot = opened[0]
                arena = self._engine.paths.claims / str(slot.shard)
                holder = subprocess.Popen(
                    [sys.executable, "-S", "-c", _HOLD, arena, str(slot.number * RECORD_BYTES)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                with holder:
                    assert holder.stdout is not None
                    holder.stdout.readline()
                    self._faults.resume(descriptor)
                    descriptor = -1
                    time.sleep(0.005)  # for it to come to the lock
                    self._faults.strike(state, task=task)
                    time.sleep(0.02)
        finally:
            self._faults.resume(descriptor)

    def _deadline(self, state: str) -> None:
        swarm_id, descriptor = self._faults.stop_one(self._callers.kept)
        task, request = self._callers.on_kept(swarm_id, deadline_ms=300)
        task.deadline_ms = 300
        try:
            with self._callers.asking(task, request) as accepted:
                if accepted.wait(SEEN_S) and task.answer is None:
                    time.sleep(max(0.0, task.began_s + 0.295 - time.monotonic()))
                    self._faults.strike(state)
                else:
                    self._miss(state)
        finally:
            self._faults.resume(descriptor)

    def _ended_not_reported(self, state: str) -> None:
        task, request = self._callers.request(pause_s=0.15)
        with self._callers.asking(task, request):
            if not self._view.until(task, lambda kinds: records.CLAIMED in kinds):
                self._miss(state)
                return
            for name in ("conductor", *coordinator_names(self._faults.coordinators)):
                self._faults.signal_daemon(name, signal.SIGSTOP, stopped_s=0.35)
            if self._view.until(task, lambda kinds: all(kind == records.ENDED for kind in kinds)):
                self._faults.strike(state, only=["conductor", "coordinator", "spawner"])
            else:
                self._miss(state)

    def _after_event(self, state: str) -> None:
        """The second fault comes when the first has just been noticed."""
        first = self._random.choice(coordinator_names(self._faults.coordinators))
        name, event = {
            "handed over": (first, "coordinator lost"),
            "coming home": (first, "coordinator connected"),
            "replaying": ("conductor", "conductor started"),
            "adopting": ("spawner", "spawner connected"),
        }[state]
        task, request = self._callers.request(pause_s=0.1)
        with self._callers.asking(task, request) as accepted:
            accepted.wait(SEEN_S)
            with suppress(OSError):
                since = self._engine.logged("conductor").stat().st_size
                if self._faults.signal_daemon(name, signal.SIGKILL) and self._view.event(
                    "conductor", event, since
                ):
                    self._faults.strike(state, task=task)
                    return
            self._miss(state)

    def _by_hand(self, state: str) -> None:
        number = self._random.randint(1, self._faults.coordinators)
        how = "drain" if state == "draining" else "dead"
        task, request = self._callers.request(pause_s=0.05)
        with self._callers.asking(task, request) as accepted:
            accepted.wait(SEEN_S)
            with self._callers.verb(verb="failover", coordinator=number, how=how):
                time.sleep(self._random.choice([0.0, 0.001, 0.003]))
                self._faults.strike(state, task=task)
        if how == "drain":
            self._engine.ask(verb="failover", coordinator=number, how="resume")

    def _revoking(self, state: str) -> None:
        task, request = self._callers.request(pause_s=0.05)
        with self._callers.asking(task, request) as accepted:
            accepted.wait(SEEN_S)
            with self._callers.verb(verb="revoke", task_id=task.task_id):
                self._faults.strike(state, task=task)

    def _made(self, state: str) -> None:
        swarm_id, asked = self._callers.new_swarm(), 13
        with self._callers.verb(verb="init", agents=asked, swarm_id=swarm_id):
            time.sleep(self._random.choice([0.0, 0.003, 0.01]))
            self._faults.strike(state)
        # Asked again it is there already, if the answer was lost with the conductor.
        again = self._engine.ask(verb="init", agents=asked, swarm_id=swarm_id)
        if "exists already" not in again.get("error", "exists already"):
            self._report.problem(f"{swarm_id}: {again}")
        task, request = self._callers.on_kept(swarm_id, agents=asked)
        self._callers.ask(task, request)
        self._end(swarm_id)

    def _closed(self, state: str) -> None:
        swarm_id = self._callers.new_swarm()
        self._engine.ask(verb="init", agents=13, swarm_id=swarm_id)
        task, request = self._callers.on_kept(swarm_id, agents=13)
        with self._callers.asking(task, request) as accepted:
            accepted.wait(SEEN_S)  # in most cases it runs still when its swarm goes
            with self._callers.verb(verb="shutdown", swarm_id=swarm_id):
                time.sleep(self._random.choice([0.0, 0.002, 0.01]))
                self._faults.strike(state)
        self._end(swarm_id)

    def _end(self, swarm_id: str) -> None:
        """Shut a swarm down; it may be gone already, or go by itself."""
        limit = time.monotonic() + 300
        while time.monotonic() < limit:
            answer = self._engine.ask(verb="shutdown", swarm_id=swarm_id)
            if f"no swarm {swarm_id}" in answer.get("error", ""):
                return
        self._report.problem(f"{swarm_id} does not end")

    def _messages(self, state: str) -> None:
        swarm_id = self._random.choice(self._callers.kept)
        agent = f"agent-{self._random.randint(1, self._callers.kept_agents - self._faults.coordinators)}"
        task, request = self._callers.request()
        with self._callers.asking(task, request):
            for position in range(6):
                body = f"{task.task_id}-{position}"
                value = {"verb": "send", "swarm_id": swarm_id, "from": "agent-1", "to": agent, "type": "note"}
                value["payload_b64"] = base64.b64encode(body.encode()).decode()
                try:
                    with Client(self._engine.paths.conductor_socket, timeout_s=5) as client:
                        answers = client.request(value)
                        if position == 3:
                            threading.Thread(target=self._faults.strike, args=(state,), daemon=True).start()
                        answer = next(answers)
                except (CfnError, OSError):
                    time.sleep(0.01)  # not answered: it may have been stored, and need not be
                    continue
                if "message" in answer:
                    with self._report.lock:
                        self._report.messages += 1
                        self.sent[swarm_id, agent].add(body)

    def _broadcast(self, state: str) -> None:
        swarm_id = self._random.choice(self._callers.kept)
        task, request = self._callers.request()
        with self._callers.asking(task, request):
            value = {"verb": "broadcast", "swarm_id": swarm_id, "type": "news"}
            path = self._engine.paths.conductor_socket
            with suppress(CfnError, OSError, StopIteration), Client(path, timeout_s=20) as client:
                answers = client.request(value)
                self._faults.later(
                    self._random.choice([0.0, 0.001, 0.003]), lambda: self._faults.strike(state)
                )
                answer = next(answers)
                if answer["sent"] != self._callers.kept_agents or answer["delivered"] > answer["sent"]:
                    self._report.problem(f"broadcast to {swarm_id}: {answer}")

    def receive(self, swarm_id: str, agent: str) -> None:
        """Read an inbox until it is empty."""
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            answer = self._engine.ask(verb="recv", swarm_id=swarm_id, agent=agent)
            if "messages" not in answer:
                time.sleep(0.05)
                continue
            if not answer["messages"]:
                return
            bodies = [base64.b64decode(row["payload_b64"]).decode() for row in answer["messages"]]
            self.received[swarm_id, agent].update(bodies)
