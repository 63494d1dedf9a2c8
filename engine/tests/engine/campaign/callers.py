"""Callers as they should be: they choose an id, and ask again until they are answered."""

import base64
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from cfn.client import Client
from cfn.coordination import FINAL_STATES
from cfn.errors import CfnError
from engine.tests.engine.harness import Engine, Supervisor

from .report import AGENT_TIMEOUT_MS, MARGIN_S, Report, Task


class Callers:
    """Makes requests and checks their answers. `sizes` are the agents of a request on a swarm of its own,
    least and most; `kept` are swarms of `kept_agents`, `share_kept` the share of requests that use them."""

    def __init__(
        self,
        engine: Engine,
        report: Report,
        supervisor: Supervisor,
        draw: random.Random,
        *,
        sizes: tuple[int, int],
        kept: list[str],
        kept_agents: int,
        share_kept: float,
    ) -> None:
        self.sizes = sizes
        self.kept = kept
        self.kept_agents = kept_agents
        self._engine = engine
        self._report = report
        self._supervisor = supervisor
        self._random = draw
        self._share_kept = share_kept
        self._number = 0

    def task(self, *, notes: bool = True) -> Task:
        with self._report.lock:
            self._number += 1
            return Task(task_id=f"t{self._number}", notes=notes)

    def request(self, *, pause_s: float = 0.0, flat: bool = False) -> tuple[Task, dict[str, Any]]:
        """A task on a kept swarm or on one of its own; some agents are the built-in one."""
        draw = self._random
        task = self.task(notes=bool(pause_s) or draw.random() < 0.7)
        request: dict[str, Any] = {"deadline_ms": task.deadline_ms}
        if not flat and self.kept and draw.random() < self._share_kept:
            request |= {"agents": self.kept_agents, "swarm_id": draw.choice(self.kept)}
        else:
            request["agents"] = draw.randint(*self.sizes)
        if task.notes:
            text = f"{pause_s:.3f}\n" if pause_s else "\n"
            request |= {"command": "note", "payload_b64": base64.b64encode(text.encode()).decode()}
        return task, request

    def on_kept(self, swarm_id: str, **changes: Any) -> tuple[Task, dict[str, Any]]:
        task, request = self.request(pause_s=0.02)
        return task, {**request, "agents": self.kept_agents, "swarm_id": swarm_id, **changes}

    def new_swarm(self) -> str:
        with self._report.lock:
            self._number += 1
            return f"swarm-{self._number}"

    def ask(
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
                    self._report.problem(f"{task.task_id} was refused: {answer}")
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
                self._report.problem(f"{task.task_id} has no answer: {request}")
                break
        with self._report.lock:
            self._report.tasks.append(task)
        if task.answer is not None:
            self._check(task, value, limit_s)
        return task

    @contextmanager
    def asking(self, task: Task, request: Mapping[str, Any]) -> Iterator[threading.Event]:
        """Ask in another thread; the event is set when it is accepted. Leaving waits for the answer."""
        accepted = threading.Event()
        thread = threading.Thread(
            target=self.ask, args=(task, request), kwargs={"accepted": accepted.set}, daemon=True
        )
        thread.start()
        try:
            yield accepted
        finally:
            thread.join()

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
            self._report.problem(
                f"{task.task_id}: {len(answer['results'])} results of {asked}, {answer['state']}"
            )
        if sum(answer["states"][state] for state in FINAL_STATES) != asked:
            self._report.problem(f"{task.task_id}: the sum of {answer['states']} is not {asked}")
        if {result["state"] for result in answer["results"]} - set(FINAL_STATES):
            self._report.problem(f"{task.task_id}: a result that is not final")
        if any(result["state"] != "done" and not result["reason"] for result in answer["results"]):
            self._report.problem(f"{task.task_id}: a result without a reason")
        if task.took_s > limit_s:
            self._report.problem(f"{task.task_id}: answered after {task.took_s:.1f} s")
        if self._random.random() < 0.3 and self._engine.ask(**value) != answer:
            self._report.problem(f"{task.task_id}: asked again, the answer is another one")

    @contextmanager
    def verb(self, **value: Any) -> Iterator[None]:
        """Have a verb under way; its answer, or that it has none, does not matter here."""

        def ask() -> None:
            path = self._engine.paths.conductor_socket
            with suppress(CfnError, OSError, StopIteration), Client(path, timeout_s=20) as client:
                client.final(value)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join()
