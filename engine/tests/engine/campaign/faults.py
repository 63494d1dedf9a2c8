"""Faults: which processes are killed or stopped, and how it is made sure that they are this engine's."""

import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cfn.engine.lean import records
from engine.tests.engine.harness import Engine, Supervisor, coordinator_names

from .report import Report, Task
from .view import View


class Faults:
    """Kills and stops, and counts for which state."""

    def __init__(
        self,
        engine: Engine,
        report: Report,
        supervisor: Supervisor,
        view: View,
        draw: random.Random,
        coordinators: int,
    ) -> None:
        self.coordinators = coordinators
        self._engine = engine
        self._report = report
        self._supervisor = supervisor
        self._view = view
        self._random = draw
        self._timers: list[threading.Timer] = []

    def settle(self) -> None:
        """Wait for what was to come later, and let everybody go on."""
        for timer in self._timers:
            timer.join()
        for process in self._engine.processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)

    def strike(self, state: str, *, task: Task | None = None, only: Sequence[str] = ()) -> None:
        """One to three faults, counted for the state."""
        draw = self._random
        kinds = list(only) or ["conductor", "coordinator", "spawner", "worker"]
        for kind in draw.sample(kinds, k=min(len(kinds), draw.choice([1, 1, 1, 2, 2, 3]))):
            number = signal.SIGKILL if draw.random() < 0.6 else signal.SIGSTOP
            if self._hit(kind, number, task):
                with self._report.lock:
                    self._report.faults[state, kind, number.name] += 1
        with self._report.lock:
            self._report.reached[state] += 1

    def _hit(self, kind: str, number: signal.Signals, task: Task | None) -> bool:
        if kind == "worker":
            return self._hit_worker(number, task)
        name = kind
        if kind == "coordinator":
            name = self._random.choice(coordinator_names(self.coordinators))
        return self.signal_daemon(name, number)

    def signal_daemon(self, name: str, number: signal.Signals, *, stopped_s: float | None = None) -> bool:
        process = self._engine.processes[name]
        if process.poll() is not None:
            return False
        if name == "conductor" and self._supervisor.down and self._random.random() < 0.8:
            return False  # else it is killed again and again before it can serve
        process.send_signal(number)
        if number == signal.SIGSTOP:  # one in four is left to the watchdog
            pause_s = stopped_s or self._random.choice([0.02, 0.1, 0.2, 10.0])
            if pause_s < 1:
                self.later(pause_s, lambda: process.send_signal(signal.SIGCONT))
        return True

    def _hit_worker(self, number: signal.Signals, task: Task | None) -> bool:
        pids = self._workers(task)
        self._random.shuffle(pids)
        for pid in pids:
            descriptor = self.own(pid)
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

            self.later(self._random.choice([0.02, 0.1, 0.3]), go_on)
        else:
            os.close(descriptor)
        return True

    def _workers(self, task: Task | None) -> list[int]:
        """Processes of workers: of a task if it has any that claimed, else the spawner's children."""
        claimed = []
        if task is not None:
            claimed = [
                r.pid for _, r in self._view.slots(task) if r is not None and r.kind == records.CLAIMED
            ]
        if claimed:
            return claimed
        spawner = self._engine.processes["spawner"].pid
        with suppress(OSError):
            return list(map(int, Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()))
        return []

    def own(self, pid: int) -> int:
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

    def stop_one(self, kept: Sequence[str]) -> tuple[str, int]:
        """A kept swarm and the pidfd of one of its workers, which is stopped."""
        swarm_id = self._random.choice(kept)
        pids = list(self._engine.pids(swarm_id).values())
        self._random.shuffle(pids)
        for pid in pids:
            descriptor = self.own(pid)
            if descriptor >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
                return swarm_id, descriptor
        return swarm_id, -1

    def resume(self, descriptor: int) -> None:
        if descriptor >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)

    def later(self, pause_s: float, action: Callable[[], None]) -> None:
        def act() -> None:
            with suppress(ProcessLookupError):
                action()

        timer = threading.Timer(pause_s, act)
        timer.start()
        with self._report.lock:
            self._timers = [old for old in self._timers if old.is_alive()]
            self._timers.append(timer)
