"""A whole campaign: prepare, let the lanes run, settle, judge."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from engine.tests.engine.harness import Engine, Supervisor, send_signal

from .callers import Callers
from .faults import Faults
from .report import AGENT_TIMEOUT_MS, DEADLINE_MS, STATES, STOPPED_S, Report
from .scenarios import Scenarios
from .view import View


class Campaign:
    """All lanes share one engine. See Callers for `sizes`, `kept_agents` and `share_kept`."""

    def __init__(
        self,
        engine: Engine,
        seed: int,
        *,
        coordinators: int = 3,
        sizes: tuple[int, int] = (2, 24),
        kept_agents: int = 16,
        share_kept: float = 0.5,
        states: Sequence[str] = tuple(STATES),
    ) -> None:
        draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self.report = Report()
        self._engine = engine
        engine.patience_s = 300
        self._states = states
        self._supervisor = Supervisor(engine, stopped_s=STOPPED_S)
        view = View(engine, self.report)
        self._faults = Faults(engine, self.report, self._supervisor, view, draw, coordinators)
        self._callers = Callers(
            engine,
            self.report,
            self._supervisor,
            draw,
            sizes=sizes,
            kept=["kept-0", "kept-1"],
            kept_agents=kept_agents,
            share_kept=share_kept,
        )
        self._scenarios = Scenarios(engine, self.report, view, self._faults, self._callers, draw, states)

    def run(self, count: int, *, each: int = 0, lanes: int = 6, limit_s: float = 1e9) -> Report:
        """Do `count` coordinations: more until each state was reached `each` times, fewer if time is up."""
        self._prepare()
        limit = time.monotonic() + limit_s

        def enough() -> bool:
            done = len(self.report.tasks) >= count
            reached = all(self.report.reached[state] >= each for state in self._states)
            return (done and reached) or time.monotonic() > limit

        def lane() -> None:
            while not enough():
                state = self._scenarios.next_state()
                began_s = time.monotonic()
                try:
                    self._scenarios.run(state)
                except Exception as error:  # a lane's failure is a finding too
                    self.report.problem(f"{state}: {error!r}")
                self.report.seconds[state] += time.monotonic() - began_s
                if len(self.report.problems) > 20:
                    return

        with self._supervisor:
            threads = [threading.Thread(target=lane, daemon=True) for _ in range(lanes)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
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
            CFN_MAX_AGENTS=max(48, self._callers.sizes[1], self._callers.kept_agents),
            CFN_TOPOLOGY="hybrid",
            CFN_COORDINATORS=self._faults.coordinators,
            CFN_AGENT_COMMANDS=f"note={note}",
            CFN_AGENT_TIMEOUT_TIME=AGENT_TIMEOUT_MS,
            CFN_COORDINATION_DEADLINE_TIME=DEADLINE_MS,
            CFN_MAX_SPAWN_RATE=1_000,
        )
        engine.start_hybrid(self._faults.coordinators)
        for swarm_id in self._callers.kept:
            answer = engine.ask(verb="init", agents=self._callers.kept_agents, swarm_id=swarm_id)
            assert answer["live"] == self._callers.kept_agents, answer

    def _settle(self) -> None:
        """After the faults all is well again, and messages that wait are read."""
        engine = self._engine
        self._faults.settle()
        engine.connected(*range(1, self._faults.coordinators + 1))
        for number in range(1, self._faults.coordinators + 1):
            engine.ask(verb="failover", coordinator=number, how="resume")
        for swarm_id in self._callers.kept:
            request = {"agents": self._callers.kept_agents, "swarm_id": swarm_id}
            for _ in range(2):  # the first one shows a worker that is stopped, and has it replaced
                task = self._callers.ask(self._callers.task(notes=False), request)
                done = task.answer["states"]["done"] if task.answer else 0
            if done != self._callers.kept_agents:
                self.report.problem(f"afterwards {swarm_id} is not whole: {task.answer}")
        for (swarm_id, agent), sent in self._scenarios.sent.items():
            self._scenarios.receive(swarm_id, agent)
            missing = sent - self._scenarios.received[swarm_id, agent]
            if missing:
                self.report.problem(f"{len(missing)} messages to {agent} of {swarm_id} are lost")
        for swarm_id in self._callers.kept:
            engine.ask(verb="shutdown", swarm_id=swarm_id)
        # One that was stopped for good, and then lost its spawner, perhaps before it led a session: then
        # it has others' sockets too.
        for pid in engine.workers():
            send_signal(pid, signal.SIGCONT)
        with suppress(AssertionError):
            engine.until(lambda: not engine.workers(), 15)
        for pid in engine.workers():
            self.report.problem(f"worker {pid} is left")

    def _judge(self) -> None:
        """The promise, for every task."""
        ran = Counter(self._engine.ran.read_text().splitlines() if self._engine.ran.exists() else ())
        for run, number in ran.items():
            if number > 1:
                self.report.problem(f"{run} ran {number} times")
        for task in self.report.tasks:
            answer = task.answer
            if answer is None:
                continue
            for result in answer["results"]:
                worker = not result["agent"].startswith("coordinator-")
                had_run = ran[f"{task.task_id} {result['agent']}"] > 0
                if result["state"] == "undelivered" and had_run:
                    self.report.problem(f"{task.task_id} {result['agent']} is undelivered and ran")
                if result["state"] == "done" and task.notes and worker and not had_run:
                    self.report.problem(f"{task.task_id} {result['agent']} is done and did not run")
