"""A failover as it is measured, on a conductor that answers what the test lays out."""

import json
import signal
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cfn.paths import Paths
from engine.bench import failover
from engine.bench.engine import Engine, RefusedError
from engine.bench.processes import Process

DONE = {"done": 3, "failed": 0, "undelivered": 0, "unknown": 0}
LOST = {"done": 1, "failed": 0, "undelivered": 1, "unknown": 1}
UP = {"id": "coordinator-1", "state": "up", "failovers": 0}


class Stage(Engine):
    """An engine of one coordinator whose answers are `outcomes`: (coordination_time_ms, states), the last
    one for ever. A signal makes health say `after`, and the workers `workers_after` are left."""

    def __init__(self, root: Path) -> None:
        place: Any = type("Nowhere", (), {"paths": Paths(root)})
        super().__init__(place)
        self.outcomes: list[tuple[float, dict[str, int]]] = [(5.0, DONE)]
        self.after = {**UP, "failovers": 1}
        self.workers_after = [11, 12]
        self.signals: list[int] = []

    def processes(self) -> list[Process]:
        workers = self.workers_after if self.signals else [11, 12]
        return [Process(71, 71, "coordinator", 1), *(Process(pid, pid, "worker") for pid in workers)]

    def kill(self, process: Process, number: int = signal.SIGKILL) -> None:
        assert process.pid == 71
        self.signals.append(number)

    def answers(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if request["verb"] == "health":
            yield {"spawner": "up", "coordinators": [self.after if self.signals else UP]}
        else:
            yield {"state": "accepted", "task_id": request["task_id"]}
            time_ms, states = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
            yield {"coordination_time_ms": time_ms, "states": states}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A conductor that answers."""
    stage = Stage(tmp_path)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                for answer in stage.answers(json.loads(line)):
                    self.wfile.write(json.dumps(answer).encode() + b"\n")

    stage.paths.run.mkdir(parents=True)
    with socketserver.ThreadingUnixStreamServer(str(stage.paths.conductor_socket), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield stage
        server.shutdown()


def fail_over(stage: Stage, number: signal.Signals = signal.SIGKILL) -> failover.Failover:
    with ThreadPoolExecutor() as pool:
        return failover.one(stage, pool, "s", 3, 1, number)


def test_served_again_at_the_last_acknowledgement_of_both(stage: Stage) -> None:
    stage.outcomes = [(90_000.0, DONE), (5.0, DONE)]
    found = fail_over(stage)
    # The first was asked for before the signal, so a little less; far more than all that really passes.
    assert 60_000 < found.served_ms < 90_000
    assert found.shown_ms is not None
    assert (found.states, found.lost_workers) == ({state: 2 * n for state, n in DONE.items()}, 0)
    assert stage.signals == [signal.SIGKILL]


def test_repeated_until_all_are_served(stage: Stage) -> None:
    stage.outcomes = [(5.0, LOST), (5.0, LOST), (90_000.0, DONE)]
    found = fail_over(stage)
    assert found.served_ms > 90_000 - 1
    assert found.states == {"done": 5, "failed": 0, "undelivered": 2, "unknown": 2}


def test_workers_that_are_gone_are_counted(stage: Stage) -> None:
    stage.workers_after = [11, 99]
    assert fail_over(stage).lost_workers == 1


def test_what_health_never_shows(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "LIMIT_S", 0.3)
    stage.after = UP
    assert fail_over(stage).shown_ms is None


def test_never_served_again_is_no_figure(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "LIMIT_S", 0.3)
    stage.outcomes = [(5.0, LOST)]
    with pytest.raises(RefusedError, match="3 agents are not served again"):
        fail_over(stage)


def test_a_hung_coordinator_that_nobody_killed_is_let_go_on(stage: Stage) -> None:
    fail_over(stage, signal.SIGSTOP)
    assert stage.signals == [signal.SIGSTOP, signal.SIGCONT]
