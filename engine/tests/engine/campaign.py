"""The fault campaign: coordinations on a real engine while its processes are killed and stopped.

    python -m engine.tests.engine.campaign --count 10000 --seed 1

Several coordinations run at a time. Each is led to one state of the protocol (STATES), and when it is
seen there one to three processes are killed (SIGKILL) or stopped (SIGSTOP; continued soon, or killed by
the supervisor, as a unit's watchdog does). The state with the fewest faults so far is next. Each agent
notes its runs in one file, one line for each. At the end, of every task that was accepted:

- each agent is in exactly one of the four final states, and their sum is right;
- no agent ran twice, none that is undelivered ran, each that is done ran;
- no answer came later than deadline + agent timeout + MARGIN_S, not counting the time in which no
  conductor ran: a caller's clock cannot bound how often it is killed, or how slow a busy machine starts it;
- the same id asked again gives the same answer;
- every message that was accepted is received.
"""

import argparse
import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfn.client import Client
from cfn.coordination import FINAL_STATES
from cfn.engine.lean import records
from cfn.engine.lean.records import RECORD_BYTES
from cfn.errors import CfnError

from .harness import Engine, Supervisor, coordinator_names, state_of

DEADLINE_MS = 4_000
AGENT_TIMEOUT_MS = 2_000
# A worker that is stopped while it runs is killed 9 s after its time limit; a hanging coordinator after 3 s.
MARGIN_S = 15.0
STOPPED_S = 0.4  # the watchdog's bound for daemons
SEEN_S = 2.5  # for a state to be seen
HOLD = "import fcntl,sys\nf=open(sys.argv[1],'r+b')\nfcntl.lockf(f,fcntl.LOCK_EX,1,int(sys.argv[2]))\nprint(flush=True)\nsys.stdin.read()"

STATES: Mapping[str, str] = {
    "idle": "nothing of the task exists: the fault comes right before the request",
    "accepted": "the caller has just been told so",
    "queued": "more agents were asked for than may run at once; health counts those that wait",
    "spawning": "some slots are claimed, others open: the spawn rate is bounded",
    "open": "all have claimed but one, whose worker was stopped before",
    "locked": "a slot is open and locked by another process; its worker waits for the lock",
    "running": "a slot is claimed and its process lives",
    "partly ended": "some slots have ended, others run",
    "ended, not reported": "all slots have ended while their hub is stopped",
    "completing": "the last slot has just ended",
    "told": "the outcome has just been told",
    "handed over": "the conductor has just lost a coordinator and given its teams to others",
    "coming home": "a coordinator has just come back",
    "replaying": "the conductor has just started again with open requests",
    "adopting": "the spawner has just started again",
    "failing over by hand": "the verb is under way",
    "draining": "the verb is under way",
    "revoking": "the verb is under way",
    "deadline": "it has just passed, and a stopped worker has not claimed",
    "swarm being made": "`init` is under way",
    "swarm being closed": "`shutdown` is under way",
    "message in flight": "`send` is under way",
    "broadcast in flight": "`broadcast` is under way",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an agent claims."""

    shard: int
    number: int


@dataclass(slots=True)
class Task:
    """One coordination and what became of it."""

    task_id: str
    notes: bool  # its agents note that they run
    began_s: float = 0.0
    deadline_ms: int = DEADLINE_MS
    key: int = 0
    slots: list[Slot] = field(default_factory=list)
    answer: dict[str, Any] | None = None
    took_s: float = 0.0


@dataclass(slots=True)
class Report:
    """What happened."""

    tasks: list[Task] = field(default_factory=list)
    faults: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # state, process, signal
    reached: Counter[str] = field(default_factory=Counter)  # coordinations that had a fault in a state
    missed: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)  # of the lanes
    messages: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def slowest_s(self) -> float:
        return max((task.took_s for task in self.tasks), default=0.0)

    @property
    def states(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for task in self.tasks:
            counted.update(task.answer["states"] if task.answer else {"none": 1})
        return counted

    def as_json(self) -> dict[str, Any]:
        processes: dict[str, Counter[str]] = defaultdict(Counter)
        for (_, process, name), number in self.faults.items():
            processes[process][name] += number
        return {
            "coordinations": len(self.tasks),
            "agents": dict(self.states),
            "faults_by_state": {state: self.reached[state] for state in STATES},
            "faults_by_process": {process: dict(names) for process, names in processes.items()},
            "not_seen": dict(self.missed),
            "seconds": {state: round(seconds) for state, seconds in self.seconds.items()},
            "messages": self.messages,
            "slowest_s": round(self.slowest_s, 3),
            "problems": self.problems,
        }


class Campaign:
    """All lanes share one engine. `sizes` are the agents of a request on a swarm of its own, least and
    most; `kept` is how many kept swarms there are, `share_kept` the share of requests that use them."""

    def __init__(
        self,
        engine: Engine,
        seed: int,
        *,
        coordinators: int = 3,
        sizes: tuple[int, int] = (2, 24),
        kept_agents: int = 16,
        kept: int = 2,
        share_kept: float = 0.5,
        states: Sequence[str] = tuple(STATES),
    ) -> None:
        self.report = Report()
        self._engine = engine
        engine.patience_s = 300
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._coordinators = coordinators
        self._sizes = sizes
        self._kept_agents = kept_agents
        self._kept = [f"kept-{number}" for number in range(kept)]
        self._share_kept = share_kept
        self._states = states
        self._supervisor = Supervisor(engine, stopped_s=STOPPED_S)
        self._lock = threading.Lock()
        self._number = 0
        self._plans: dict[str, tuple[int, list[Slot]]] = {}
        self._read: dict[Path, int] = {}
        self._sent: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._received: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._counted = dict.fromkeys(states, 0)  # chosen, not yet reached
        self._timers: list[threading.Timer] = []
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

    # The whole

    def run(self, count: int, *, each: int = 0, lanes: int = 6, limit_s: float = 1e9) -> Report:
        """Do `count` coordinations, more until each state was reached `each` times, less if the time is up."""
        self._prepare()
        limit = time.monotonic() + limit_s

        def enough() -> bool:
            done = len(self.report.tasks) >= count
            reached = all(self.report.reached[state] >= each for state in self._states)
            return (done and reached) or time.monotonic() > limit

        def lane() -> None:
            while not enough():
                state = self._next_state()
                began_s = time.monotonic()
                try:
                    self._aim.get(state, self._seen)(state)
                except Exception as error:
                    self._problem(f"{state}: {error!r}")
                self.report.seconds[state] += time.monotonic() - began_s
                if len(self.report.problems) > 20:
                    return

        with self._supervisor:
            threads = [threading.Thread(target=lane, daemon=True) for _ in range(lanes)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for timer in self._timers:
                timer.join()
            self._settle()
        self._judge()
        return self.report

    def _prepare(self) -> None:
        engine = self._engine
        note = engine.paths.root / "note"
        # One write with O_APPEND for each run; then as long as the input says, each agent a little longer.
        note.write_text(
            f'#!/bin/dash\nprintf "%s %s\\n" "$CFN_TASK_ID" "$CFN_AGENT_ID" >> {engine.ran}\n'
            'read -r pause || true\n[ -z "$pause" ] || exec sleep "$pause"\n'
        )
        note.chmod(0o755)
        engine.configure(
            CFN_MAX_AGENTS=max(48, self._sizes[1], self._kept_agents),
            CFN_TOPOLOGY="hybrid",
            CFN_COORDINATORS=self._coordinators,
            CFN_AGENT_COMMANDS=f"note={note}",
            CFN_AGENT_TIMEOUT_TIME=AGENT_TIMEOUT_MS,
            CFN_COORDINATION_DEADLINE_TIME=DEADLINE_MS,
            CFN_MAX_SPAWN_RATE=1_000,
        )
        engine.start_hybrid(self._coordinators)
        for swarm_id in self._kept:
            answer = engine.ask(verb="init", agents=self._kept_agents, swarm_id=swarm_id)
            assert answer["live"] == self._kept_agents, answer

    def _settle(self) -> None:
        """After the faults all is well again, and messages that wait are read."""
        engine = self._engine
        for name in list(engine.processes):
            with suppress(ProcessLookupError):
                engine.processes[name].send_signal(signal.SIGCONT)
        engine.connected(*range(1, self._coordinators + 1))
        for number in range(1, self._coordinators + 1):
            engine.ask(verb="failover", coordinator=number, how="resume")
        for swarm_id in self._kept:
            task = self._ask(self._task(notes=False), {"agents": self._kept_agents, "swarm_id": swarm_id})
            if task.answer is None or task.answer["states"]["done"] != self._kept_agents:
                self._problem(f"afterwards {swarm_id} is not whole: {task.answer}")
        for (swarm_id, agent), sent in self._sent.items():
            self._receive(swarm_id, agent)
            missing = sent - self._received[swarm_id, agent]
            if missing:
                self._problem(f"{len(missing)} messages to {agent} of {swarm_id} are lost")
        for swarm_id in self._kept:
            engine.ask(verb="shutdown", swarm_id=swarm_id)
        with suppress(AssertionError):
            engine.until(lambda: not engine.leaders(), 5)
        for pid in engine.leaders():
            self._problem(f"worker {pid} is left, state {state_of(pid)}")

    def _judge(self) -> None:
        """The promise, for every task."""
        ran = Counter(self._engine.ran.read_text().splitlines() if self._engine.ran.exists() else ())
        for run, number in ran.items():
            if number > 1:
                self._problem(f"{run} ran {number} times")
        for task in self.report.tasks:
            answer = task.answer
            if answer is None:
                continue
            for result in answer["results"]:
                worker = not result["agent"].startswith("coordinator-")
                had_run = ran[f"{task.task_id} {result['agent']}"] > 0
                if result["state"] == "undelivered" and had_run:
                    self._problem(f"{task.task_id} {result['agent']} is undelivered and ran")
                if result["state"] == "done" and task.notes and worker and not had_run:
                    self._problem(f"{task.task_id} {result['agent']} is done and did not run")

    def _problem(self, text: str) -> None:
        with self._lock:
            self.report.problems.append(text)
        sys.stderr.write(f"problem: {text}\n")

    def _next_state(self) -> str:
        with self._lock:
            least = min(self._counted.values())
            state = self._random.choice([s for s, number in self._counted.items() if number == least])
            self._counted[state] += 1
            return state

    # Requests

    def _task(self, *, notes: bool = True) -> Task:
        with self._lock:
            self._number += 1
            return Task(task_id=f"t{self._number}", notes=notes)

    def _request(self, *, pause_s: float = 0.0, flat: bool = False) -> tuple[Task, dict[str, Any]]:
        """A task on a kept swarm or on one of its own; some agents are the built-in one."""
        draw = self._random
        task = self._task(notes=bool(pause_s) or draw.random() < 0.7)
        request: dict[str, Any] = {"deadline_ms": task.deadline_ms}
        if not flat and self._kept and draw.random() < self._share_kept:
            request |= {"agents": self._kept_agents, "swarm_id": draw.choice(self._kept)}
        else:
            request["agents"] = draw.randint(*self._sizes)
        if task.notes:
            text = f"{pause_s:.3f}\n" if pause_s else "\n"
            request |= {"command": "note", "payload_b64": base64.b64encode(text.encode()).decode()}
        return task, request

    def _ask(
        self,
        task: Task,
        request: Mapping[str, Any],
        *,
        accepted: Callable[[], None] | None = None,
    ) -> Task:
        """Ask until it is answered, as callers do, and check the answer. `accepted` is called once."""
        task.began_s = time.monotonic()
        value = {"verb": "coordinate", "task_id": task.task_id, **request}
        limit_s = task.deadline_ms / 1000 + AGENT_TIMEOUT_MS / 1000 + MARGIN_S
        down_s = self._supervisor.down_s
        while task.answer is None:
            for answer in self._answers(value, limit_s):
                if "error" in answer:
                    self._problem(f"{task.task_id} was refused: {answer}")
                    return task
                if set(answer) == {"state", "task_id"}:
                    if accepted is not None:
                        call, accepted = accepted, None
                        call()
                    continue
                task.answer = answer
                break
            task.took_s = time.monotonic() - task.began_s - (self._supervisor.down_s - down_s)
            if task.answer is None and task.took_s > limit_s + 10:
                self._problem(f"{task.task_id} has no answer: {request}")
                break
        with self._lock:
            self.report.tasks.append(task)
        if task.answer is not None:
            self._check(task, value, limit_s)
        return task

    def _answers(self, value: Mapping[str, Any], limit_s: float) -> Iterator[dict[str, Any]]:
        try:
            with Client(self._engine.paths.conductor_socket, timeout_s=limit_s) as client:
                yield from client.request(value)
        except (CfnError, OSError):
            time.sleep(0.005)

    def _check(self, task: Task, value: Mapping[str, Any], limit_s: float) -> None:
        answer = task.answer or {}
        asked = value["agents"]
        if answer["state"] != "complete" or len(answer["results"]) != asked:
            self._problem(f"{task.task_id}: {len(answer['results'])} results of {asked}, {answer['state']}")
        if sum(answer["states"][state] for state in FINAL_STATES) != asked:
            self._problem(f"{task.task_id}: the sum of {answer['states']} is not {asked}")
        if {result["state"] for result in answer["results"]} - set(FINAL_STATES):
            self._problem(f"{task.task_id}: a result that is not final")
        if task.took_s > limit_s:
            self._problem(f"{task.task_id}: answered after {task.took_s:.1f} s")
        if self._random.random() < 0.3 and self._engine.ask(**value) != answer:
            self._problem(f"{task.task_id}: asked again, the answer is another one")

    @contextmanager
    def _asking(self, task: Task, request: Mapping[str, Any]) -> Iterator[threading.Event]:
        """Ask in another thread; the event is set when it is accepted. Leaving waits for the answer."""
        accepted = threading.Event()
        thread = threading.Thread(
            target=self._ask, args=(task, request), kwargs={"accepted": accepted.set}, daemon=True
        )
        thread.start()
        try:
            yield accepted
        finally:
            thread.join()

    # Looking

    def _slots(self, task: Task) -> list[tuple[Slot, records.Record | None]]:
        """The task's slots as of now; none before it was accepted."""
        if not task.slots:
            self._follow()
            task.key, task.slots = self._plans.get(task.task_id, (0, []))
        found = []
        raws: dict[int, bytes] = {}
        for slot in task.slots:
            if slot.shard not in raws:
                raws[slot.shard] = (self._engine.paths.claims / str(slot.shard)).read_bytes()
            at = slot.number * RECORD_BYTES
            record = records.decode(raws[slot.shard][at : at + RECORD_BYTES])
            found.append((slot, record if record is not None and record.key == task.key else None))
        return found

    def _follow(self) -> None:
        """Read what the conductor has accepted since the last look."""
        with self._lock:
            for path in sorted((self._engine.paths.shm / "requests").glob("*.log")):
                known = self._read.get(path, 0)
                if path.stat().st_size > known:
                    for request, ends in accepted_in(path, known):
                        self._read[path] = ends
                        if request is not None:
                            slots = [
                                Slot(team["shard"], team["base"] + index)
                                for team in request["teams"]
                                for index in range(len(team["named"]) or team["count"])
                            ]
                            self._plans[request["task_id"]] = (request["key"], slots)

    def _until(self, task: Task, seen: Callable[[list[int]], bool]) -> bool:
        """Wait until the kinds of the task's slots satisfy; False when it was answered or time is up."""
        limit = time.monotonic() + SEEN_S
        while time.monotonic() < limit and task.answer is None:
            with suppress(OSError):
                found = self._slots(task)
                if found and seen([record.kind if record is not None else 0 for _, record in found]):
                    return True
            time.sleep(0.0005)
        return False

    def _event(self, name: str, event: str, since: int) -> bool:
        """Wait for an event in a daemon's log after an offset."""
        limit = time.monotonic() + SEEN_S
        needle = f'"event": "{event}"'.encode()
        while time.monotonic() < limit:
            with suppress(OSError), self._engine.logged(name).open("rb") as log:
                log.seek(since)
                if needle in log.read():
                    return True
            time.sleep(0.0005)
        return False

    # Faults

    def _strike(self, state: str, *, task: Task | None = None, only: Sequence[str] = ()) -> None:
        """One to three faults, counted for the state."""
        draw = self._random
        kinds = list(only) or ["conductor", "coordinator", "spawner", "worker"]
        for kind in draw.sample(kinds, k=min(len(kinds), draw.choice([1, 1, 1, 2, 2, 3]))):
            number = signal.SIGKILL if draw.random() < 0.6 else signal.SIGSTOP
            if self._hit(kind, number, task):
                with self._lock:
                    self.report.faults[state, kind, number.name] += 1
        with self._lock:
            self.report.reached[state] += 1

    def _hit(self, kind: str, number: signal.Signals, task: Task | None) -> bool:
        if kind == "worker":
            return self._hit_worker(number, task)
        name = kind
        if kind == "coordinator":
            name = self._random.choice(coordinator_names(self._coordinators))
        return self._signal_daemon(name, number)

    def _signal_daemon(self, name: str, number: signal.Signals, *, stopped_s: float | None = None) -> bool:
        process = self._engine.processes[name]
        if process.poll() is not None:
            return False
        if name == "conductor" and self._supervisor.down and self._random.random() < 0.8:
            return False  # else it is killed again and again before it can serve
        process.send_signal(number)
        if number == signal.SIGSTOP:  # one in four is left to the watchdog
            pause_s = stopped_s or self._random.choice([0.02, 0.1, 0.2, 10.0])
            if pause_s < 1:
                self._later(pause_s, lambda: process.send_signal(signal.SIGCONT))
        return True

    def _hit_worker(self, number: signal.Signals, task: Task | None) -> bool:
        pids = self._workers(task)
        self._random.shuffle(pids)
        for pid in pids:
            descriptor = self._own(pid)
            if descriptor >= 0:
                return self._signal_worker(descriptor, number)
        return False

    def _signal_worker(self, descriptor: int, number: signal.Signals) -> bool:
        """Signal a worker by its pidfd, which is closed."""
        hanging = self._random.random() < 0.03  # stays stopped: the engine ends it
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            os.close(descriptor)
            return False
        if number == signal.SIGSTOP and not hanging:

            def go_on() -> None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGCONT)
                os.close(descriptor)

            self._later(self._random.choice([0.02, 0.1, 0.3]), go_on)
        else:
            os.close(descriptor)
        return True

    def _workers(self, task: Task | None) -> list[int]:
        """Processes of workers: of a task if it has any that claimed, else the spawner's children."""
        claimed = []
        if task is not None:
            claimed = [r.pid for _, r in self._slots(task) if r is not None and r.kind == records.CLAIMED]
        if claimed:
            return claimed
        spawner = self._engine.processes["spawner"].pid
        with suppress(OSError):
            return list(map(int, Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()))
        return []

    def _own(self, pid: int) -> int:
        """A pidfd of a process that carries this engine's root; -1 for any other."""
        assert pid > 1, pid
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return -1
        mine = f"CFN_ROOT={self._engine.paths.root}".encode()
        with suppress(OSError):
            if mine in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return descriptor
        os.close(descriptor)
        return -1

    def _later(self, pause_s: float, action: Callable[[], None]) -> None:
        def act() -> None:
            with suppress(ProcessLookupError):
                action()

        timer = threading.Timer(pause_s, act)
        timer.start()
        with self._lock:
            self._timers = [old for old in self._timers if old.is_alive()]
            self._timers.append(timer)

    def _miss(self, state: str) -> None:
        with self._lock:
            self.report.missed[state] += 1
            self._counted[state] -= 1

    # One coordination for each state

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
        task, request = self._request(pause_s=pause_s, flat=state == "spawning")
        if state == "spawning":
            request["agents"] = self._sizes[1]
        with self._asking(task, request):
            if self._until(task, wanted[state]):
                self._strike(state, task=task)
            else:
                self._miss(state)

    def _idle(self, state: str) -> None:
        task, request = self._request()
        self._strike(state)
        self._ask(task, request)

    def _accepted(self, state: str) -> None:
        task, request = self._request()
        self._ask(task, request, accepted=lambda: self._strike(state))

    def _told(self, state: str) -> None:
        task, request = self._request()
        self._ask(task, request)
        self._strike(state)
        again = self._engine.ask(verb="coordinate", task_id=task.task_id, **request)
        if again != task.answer:
            self._problem(f"{task.task_id}: after a fault the answer is another one")

    def _queued(self, state: str) -> None:
        tasks = [self._request(pause_s=0.1) for _ in range(5)]
        with self._asking(*tasks[0]), self._asking(*tasks[1]), self._asking(*tasks[2]):
            with self._asking(*tasks[3]), self._asking(*tasks[4]):
                limit = time.monotonic() + SEEN_S
                while time.monotonic() < limit:
                    health = self._engine.ask(verb="health")
                    if health["queue_depths"]["coordinations"]:
                        self._strike(state)
                        return
                    if all(task.answer is not None for task, _ in tasks):
                        break
                self._miss(state)

    def _one_stopped(self) -> tuple[str, int]:
        """A kept swarm and the pidfd of one of its workers, which is stopped."""
        swarm_id = self._random.choice(self._kept)
        pids = list(self._engine.pids(swarm_id).values())
        self._random.shuffle(pids)
        for pid in pids:
            descriptor = self._own(pid)
            if descriptor >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
                return swarm_id, descriptor
        return swarm_id, -1

    def _resume(self, descriptor: int) -> None:
        if descriptor >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)

    def _on_kept(self, swarm_id: str, **changes: Any) -> tuple[Task, dict[str, Any]]:
        task, request = self._request(pause_s=0.02)
        return task, {**request, "agents": self._kept_agents, "swarm_id": swarm_id, **changes}

    def _open(self, state: str) -> None:
        swarm_id, descriptor = self._one_stopped()
        task, request = self._on_kept(swarm_id)
        try:
            with self._asking(task, request):
                if self._until(task, lambda kinds: kinds.count(records.OPEN) == 1):
                    self._strike(state, task=task)
                else:
                    self._miss(state)
                time.sleep(0.02)
                self._resume(descriptor)
                descriptor = -1
        finally:
            self._resume(descriptor)

    def _locked(self, state: str) -> None:
        swarm_id, descriptor = self._one_stopped()
        task, request = self._on_kept(swarm_id)
        try:
            with self._asking(task, request):
                if not self._until(task, lambda kinds: kinds.count(records.OPEN) == 1):
                    self._miss(state)
                    return
                opened = [s for s, r in self._slots(task) if r is not None and r.kind == records.OPEN]
                if not opened:
                    self._miss(state)
                    return
                slot = opened[0]
                arena = self._engine.paths.claims / str(slot.shard)
                holder = subprocess.Popen(
                    [sys.executable, "-S", "-c", HOLD, arena, str(slot.number * RECORD_BYTES)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                with holder:
                    assert holder.stdout is not None
                    holder.stdout.readline()
                    self._resume(descriptor)
                    descriptor = -1
                    time.sleep(0.005)  # for it to come to the lock
                    self._strike(state, task=task)
                    time.sleep(0.02)
        finally:
            self._resume(descriptor)

    def _deadline(self, state: str) -> None:
        swarm_id, descriptor = self._one_stopped()
        task, request = self._on_kept(swarm_id, deadline_ms=300)
        task.deadline_ms = 300
        try:
            with self._asking(task, request) as accepted:
                if accepted.wait(SEEN_S) and task.answer is None:
                    time.sleep(max(0.0, task.began_s + 0.295 - time.monotonic()))
                    self._strike(state)
                else:
                    self._miss(state)
        finally:
            self._resume(descriptor)

    def _ended_not_reported(self, state: str) -> None:
        task, request = self._request(pause_s=0.15)
        with self._asking(task, request):
            if not self._until(task, lambda kinds: records.CLAIMED in kinds):
                self._miss(state)
                return
            for name in ("conductor", *coordinator_names(self._coordinators)):
                self._signal_daemon(name, signal.SIGSTOP, stopped_s=0.35)
            if self._until(task, lambda kinds: all(kind == records.ENDED for kind in kinds)):
                self._strike(state, only=["conductor", "coordinator", "spawner"])
            else:
                self._miss(state)

    def _after_event(self, state: str) -> None:
        """The second fault comes when the first has just been noticed."""
        first = self._random.choice(coordinator_names(self._coordinators))
        name, event = {
            "handed over": (first, "coordinator lost"),
            "coming home": (first, "coordinator connected"),
            "replaying": ("conductor", "conductor started"),
            "adopting": ("spawner", "spawner connected"),
        }[state]
        task, request = self._request(pause_s=0.1)
        with self._asking(task, request) as accepted:
            accepted.wait(SEEN_S)
            with suppress(OSError):
                since = self._engine.logged("conductor").stat().st_size
                if self._signal_daemon(name, signal.SIGKILL) and self._event("conductor", event, since):
                    self._strike(state, task=task)
                    return
            self._miss(state)

    def _by_hand(self, state: str) -> None:
        number = self._random.randint(1, self._coordinators)
        how = "drain" if state == "draining" else "dead"
        task, request = self._request(pause_s=0.05)
        with self._asking(task, request) as accepted:
            accepted.wait(SEEN_S)
            with self._verb(verb="failover", coordinator=number, how=how):
                time.sleep(self._random.choice([0.0, 0.001, 0.003]))
                self._strike(state, task=task)
        if how == "drain":
            self._engine.ask(verb="failover", coordinator=number, how="resume")

    def _revoking(self, state: str) -> None:
        task, request = self._request(pause_s=0.05)
        with self._asking(task, request) as accepted:
            accepted.wait(SEEN_S)
            with self._verb(verb="revoke", task_id=task.task_id):
                self._strike(state, task=task)

    def _made(self, state: str) -> None:
        swarm_id, asked = self._swarm_id(), 13
        with self._verb(verb="init", agents=asked, swarm_id=swarm_id):
            time.sleep(self._random.choice([0.0, 0.003, 0.01]))
            self._strike(state)
        # Asked again it is there already, if the answer was lost with the conductor.
        again = self._engine.ask(verb="init", agents=asked, swarm_id=swarm_id)
        if "exists already" not in again.get("error", "exists already"):
            self._problem(f"{swarm_id}: {again}")
        task, request = self._on_kept(swarm_id, agents=asked)
        self._ask(task, request)
        self._end(swarm_id)

    def _closed(self, state: str) -> None:
        swarm_id = self._swarm_id()
        self._engine.ask(verb="init", agents=13, swarm_id=swarm_id)
        task, request = self._on_kept(swarm_id, agents=13)
        self._ask(task, request)
        with self._verb(verb="shutdown", swarm_id=swarm_id):
            time.sleep(self._random.choice([0.0, 0.002, 0.01]))
            self._strike(state)
        self._end(swarm_id)

    def _swarm_id(self) -> str:
        with self._lock:
            self._number += 1
            return f"swarm-{self._number}"

    def _end(self, swarm_id: str) -> None:
        """Shut a swarm down; it may be gone already, or go by itself."""
        limit = time.monotonic() + 300
        while time.monotonic() < limit:
            answer = self._engine.ask(verb="shutdown", swarm_id=swarm_id)
            if f"no swarm {swarm_id}" in answer.get("error", ""):
                return
        self._problem(f"{swarm_id} does not end")

    def _messages(self, state: str) -> None:
        swarm_id = self._random.choice(self._kept)
        agent = f"agent-{self._random.randint(1, self._kept_agents - self._coordinators)}"
        task, request = self._request()
        with self._asking(task, request):
            for position in range(6):
                body = f"{task.task_id}-{position}"
                value = {"verb": "send", "swarm_id": swarm_id, "from": "agent-1", "to": agent, "type": "note"}
                value["payload_b64"] = base64.b64encode(body.encode()).decode()
                try:
                    with Client(self._engine.paths.conductor_socket, timeout_s=5) as client:
                        answers = client.request(value)
                        if position == 3:
                            threading.Thread(target=self._strike, args=(state,), daemon=True).start()
                        answer = next(answers)
                except (CfnError, OSError):
                    time.sleep(0.01)  # not answered: it may have been stored, and need not be
                    continue
                if "message" in answer:
                    with self._lock:
                        self.report.messages += 1
                        self._sent[swarm_id, agent].add(body)

    def _receive(self, swarm_id: str, agent: str) -> None:
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
            self._received[swarm_id, agent].update(bodies)

    def _broadcast(self, state: str) -> None:
        swarm_id = self._random.choice(self._kept)
        task, request = self._request()
        with self._asking(task, request):
            value = {"verb": "broadcast", "swarm_id": swarm_id, "type": "news"}
            with suppress(CfnError, OSError, StopIteration):
                with Client(self._engine.paths.conductor_socket, timeout_s=20) as client:
                    answers = client.request(value)
                    self._later(self._random.choice([0.0, 0.001, 0.003]), lambda: self._strike(state))
                    answer = next(answers)
                    if answer["sent"] != self._kept_agents or answer["delivered"] > answer["sent"]:
                        self._problem(f"broadcast to {swarm_id}: {answer}")

    @contextmanager
    def _verb(self, **value: Any) -> Iterator[None]:
        """Have a verb under way; its answer, or that it has none, does not matter here."""

        def ask() -> None:
            with suppress(CfnError, OSError, StopIteration):
                with Client(self._engine.paths.conductor_socket, timeout_s=20) as client:
                    client.final(value)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def accepted_in(path: Path, at: int) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """The whole records of a segment from an offset: an accepted request or None, and where it ends."""
    from cfn.engine.request_log import _records

    with path.open("rb") as file:
        file.seek(at)
        raw = file.read()
    for kind, head, _, ends in _records(raw):
        yield (head if kind == 1 else None), at + ends


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign, print its counts as JSON; 1 when something broke the promise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=100, help="faults in each state, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=6)
    parser.add_argument("--coordinators", type=int, default=3)
    parser.add_argument("--agents", type=int, default=24, help="of a request, at most")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--keep", action="store_true", help="the engine's folder, for its logs")
    parser.add_argument("--state", action="append", choices=list(STATES), help="only these")
    options = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm"))
    engine = Engine(root)
    try:
        campaign = Campaign(
            engine,
            options.seed,
            coordinators=options.coordinators,
            sizes=(2, options.agents) if options.agents <= 24 else (options.agents, options.agents),
            kept_agents=16 if options.agents <= 24 else options.agents,
            states=options.state or tuple(STATES),
        )
        report = campaign.run(
            options.count, each=options.each, lanes=options.lanes, limit_s=options.minutes * 60
        )
    finally:
        engine.stop()
        if options.keep:
            print(root, file=sys.stderr)
        else:
            shutil.rmtree(root)
    print(json.dumps({"seed": options.seed, **report.as_json()}, indent=2))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
