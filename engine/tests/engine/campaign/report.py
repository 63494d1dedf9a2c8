"""What a campaign leads to, and what came of it."""

import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEADLINE_MS = 4_000
AGENT_TIMEOUT_MS = 2_000
# A worker that is stopped while it runs is killed 9 s after its time limit; a hanging coordinator after 3 s.
MARGIN_S = 15.0
STOPPED_S = 0.4  # the watchdog's bound for daemons
SEEN_S = 2.5  # for a state to be seen

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
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # of the lanes
    messages: int = 0
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)  # of whoever changes shared state

    def problem(self, text: str) -> None:
        """Something broke the promise."""
        with self.lock:
            self.problems.append(text)
        sys.stderr.write(f"problem: {text}\n")

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
