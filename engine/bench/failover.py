"""How long a coordinator's workers are without service when it is killed, and when it hangs.

A swarm of the full size is kept. One coordination is in flight when the signal is sent, another is
asked for when that has ended; the workers are served again at the last acknowledgement of both.
Should an agent not be done, coordinations are repeated until one reaches all.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cfn.client import Client, raise_error
from cfn.errors import CfnError
from cfn.load.account import percentile
from engine.bench.engine import COORDINATORS, Engine, RefusedError
from engine.bench.machine import busy_pct
from engine.bench.plan import Plan
from engine.bench.processes import Process
from engine.bench.table import Row, measured, refused

LIMIT_S = 20.0  # for all coordinations of one failover
DEADLINE_MS = 10_000  # of one, for its acknowledgements
POLL_S = 0.005  # of health


@dataclass(frozen=True, slots=True)
class Served:
    """A coordination: when its last acknowledgement was (monotonic), and the agents by state."""

    at_s: float
    states: dict[str, int]


@dataclass(frozen=True, slots=True)
class Failover:
    """One failover, in ms from the signal. `shown_ms`: until health does not say "up" any more, or
    counts a failover; None if it never did. `states`: of the coordinations asked for until then."""

    served_ms: float
    shown_ms: float | None
    states: dict[str, int]
    lost_workers: int


def rows(engine: Engine, plan: Plan) -> Iterator[Row]:
    """The rows of both faults."""
    for word, number, count in (
        ("SIGKILL", signal.SIGKILL, plan.failovers),
        ("SIGSTOP", signal.SIGSTOP, plan.hangs),
    ):
        title = f"{word} of a coordinator, {plan.full} agents"
        busy = busy_pct()
        try:
            failovers = list(repeat(engine, plan.full, number, count))
        except RefusedError as error:
            yield refused(f"failover, {title}", str(error))
            continue
        served = [failover.served_ms for failover in failovers]
        yield measured(f"failover, {title}", served, busy_pct=busy)
        yield measured(f"failover, {title}, p99", [percentile(served, 99)], busy_pct=busy)
        shown = [failover.shown_ms for failover in failovers if failover.shown_ms is not None]
        yield (
            measured(f"shown by health, {title}", shown, busy_pct=busy)
            if len(shown) == len(failovers)
            else refused(f"shown by health, {title}", f"{len(failovers) - len(shown)} were never shown")
        )
        not_done = [
            sum(count for state, count in failover.states.items() if state != "done")
            for failover in failovers
        ]
        yield measured(f"agents not done, {title}", not_done, "count", busy_pct=busy)
        lost = [failover.lost_workers for failover in failovers]
        yield measured(f"workers lost, {title}", lost, "count", busy_pct=busy)


def repeat(engine: Engine, agents: int, number: signal.Signals, count: int) -> Iterator[Failover]:
    """`count` failovers of one coordinator after the other. Raises RefusedError."""
    engine.use(CFN_TOPOLOGY="hybrid")
    swarm_id = engine.init(agents)
    try:
        with ThreadPoolExecutor() as pool:
            for turn in range(count):
                yield one(engine, pool, swarm_id, agents, turn % COORDINATORS + 1, number)
    finally:
        engine.shutdown(swarm_id)


def one(
    engine: Engine,
    pool: ThreadPoolExecutor,
    swarm_id: str,
    agents: int,
    coordinator: int,
    number: signal.Signals,
) -> Failover:
    """One failover; afterwards the coordinator is back. Raises RefusedError if it does not come back."""
    victim = find(engine, coordinator)
    before = report(engine, coordinator)
    pids = workers(engine)
    with Client(engine.paths.conductor_socket, timeout_s=LIMIT_S) as client:
        running = begin(client, engine.task_id(), agents, swarm_id)
        engine.kill(victim, number)
        struck_s = time.monotonic()
        seen: Future[float | None] = pool.submit(shown, engine, coordinator, before)
        rounds = [finish(*running)]
    while len(rounds) == 1 or rounds[-1].states["done"] != agents:
        if time.monotonic() - struck_s > LIMIT_S:
            raise RefusedError(
                f"coordinator {coordinator}: {agents} agents are not served again: {rounds[-1]}"
            )
        with Client(engine.paths.conductor_socket, timeout_s=LIMIT_S) as client:
            rounds.append(finish(*begin(client, engine.task_id(), agents, swarm_id)))
    shown_s = seen.result()
    if number == signal.SIGSTOP and victim.pid in {process.pid for process in engine.processes()}:
        engine.kill(victim, signal.SIGCONT)
    engine.until(engine.ready, f"coordinator {coordinator} did not come back")
    return Failover(
        served_ms=(max(round.at_s for round in rounds) - struck_s) * 1_000,
        shown_ms=None if shown_s is None else (shown_s - struck_s) * 1_000,
        states={state: sum(round.states[state] for round in rounds) for state in rounds[0].states},
        lost_workers=len(pids - workers(engine)),
    )


def begin(client: Client, task_id: str, agents: int, swarm_id: str) -> tuple[float, Iterator[dict[str, Any]]]:
    """Ask for a coordination; returns when it is accepted, with the time of the request."""
    asked_s = time.monotonic()
    request = {"verb": "coordinate", "task_id": task_id, "agents": agents, "swarm_id": swarm_id}
    answers = client.request({**request, "deadline_ms": DEADLINE_MS})
    try:
        raise_error(next(answers))
    except CfnError as error:
        raise RefusedError(f"while a coordinator is away: {error}") from error
    return asked_s, answers


def finish(asked_s: float, answers: Iterator[dict[str, Any]]) -> Served:
    """Wait for the coordination's end. Raises RefusedError if there is none."""
    try:
        answer = next(answers)
        raise_error(answer)
    except CfnError as error:
        raise RefusedError(f"while a coordinator is away: {error}") from error
    return Served(asked_s + answer["coordination_time_ms"] / 1_000, answer["states"])


def find(engine: Engine, coordinator: int) -> Process:
    """The coordinator's process. Raises RefusedError."""
    for process in engine.processes():
        if process.role == "coordinator" and process.number == coordinator:
            return process
    raise RefusedError(f"there is no process of coordinator {coordinator}")


def report(engine: Engine, coordinator: int) -> tuple[object, object]:
    """(state, failovers) of the coordinator as health says them."""
    for part in engine.health().get("coordinators", ()):
        if str(part["id"]).removeprefix("coordinator-") == str(coordinator):
            return part["state"], part.get("failovers")
    raise RefusedError(f"health does not name coordinator {coordinator}")


def shown(engine: Engine, coordinator: int, before: tuple[object, object]) -> float | None:
    """When health first says otherwise than before; None if it does not within the limit."""
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends:
        if report(engine, coordinator) != before:
            return time.monotonic()
        time.sleep(POLL_S)
    return None


def workers(engine: Engine) -> set[int]:
    """The workers' process ids, as the kernel says them."""
    return {process.pid for process in engine.processes() if process.role == "worker"}
