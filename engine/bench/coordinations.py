"""Cold and warm coordinations, flat and hybrid, with and without a command, in turn with the limit
and the peers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.bench.engine import TOPOLOGIES, Engine, RefusedError, Sample
from engine.bench.machine import SETTLE_S, busy_pct
from engine.bench.plan import Plan
from engine.bench.rounds import Programs, Rounds
from engine.bench.table import Row, growth, measured, refused

COMMAND = "/bin/true"
MODES = ("cold", "warm")
PEERS = ("redis", "nats")


def rows(engine: Engine, programs: Programs, plan: Plan) -> Iterator[Row]:
    """Every row, as it is ready."""
    done: list[Row] = []
    for topology in TOPOLOGIES:
        for command in ("", COMMAND):
            for mode in MODES:
                for agents in plan.sizes:
                    for row in one_size(engine, programs, plan, topology, command, mode, agents):
                        done.append(row)
                        yield row
    for mode in MODES:
        small, large = ((name(mode, size, "hybrid", ""), size) for size in (100, plan.sizes[-1]))
        yield growth(f"{mode}, hybrid, time per agent, {large[1]} against 100", done, small, large)


def name(mode: str, agents: int, topology: str, command: str) -> str:
    """A row's name, such as `cold, 708 agents, hybrid, /bin/true`."""
    return ", ".join(filter(None, [mode, f"{agents} agents", topology, command]))


def one_size(
    engine: Engine, programs: Programs, plan: Plan, topology: str, command: str, mode: str, agents: int
) -> Iterator[Row]:
    """The row of one size, and beside the full size what the bars compare it with."""
    row = name(mode, agents, topology, command)
    full = agents == plan.full and topology == "hybrid" and not command
    busy = busy_pct()
    samples: list[Sample] = []
    others: dict[str, list[float]] = {}
    count = plan.cold_samples if mode == "cold" else plan.warm_samples
    try:
        engine.use(CFN_TOPOLOGY=topology, CFN_AGENT_COMMAND=command)
        with (
            swarm(engine, mode, agents) as sample,
            programs.started(mode, agents, command=command, peers=PEERS if full else ()) as running,
        ):
            for number in range(-1, count):  # the first is not counted: it warms all of them up
                time.sleep(SETTLE_S)
                one, other = sample(), in_turn(programs, running, number, count // plan.peer_samples)
                if number >= 0:
                    samples.append(one)
                    for program, value in other.items():
                        others.setdefault(program, []).append(value)
    except RefusedError as error:
        yield refused(row, str(error))
        return
    # An agent that runs a command has done the work when the command has ended.
    times = [one.ended_ms if command else one.acknowledged_ms for one in samples]
    yield measured(row, times, against=others, busy_pct=busy)
    if agents == plan.full and not command:
        yield measured(
            f"{row}, whole answer", [one.answered_ms for one in samples], against=others, busy_pct=busy
        )
    if full:
        for program, values in others.items():
            yield measured(f"{program}, {mode}, {agents} processes", values, busy_pct=busy)


@contextmanager
def swarm(engine: Engine, mode: str, agents: int) -> Iterator[Callable[[], Sample]]:
    """What takes one sample. Cold: no worker lives before. Warm: in a swarm that is kept meanwhile."""
    if mode == "cold":

        def cold() -> Sample:
            sample = engine.coordinate(agents)
            engine.rest()  # what ends must not disturb what is measured next
            return sample

        engine.rest()
        yield cold
        return
    swarm_id = engine.init(agents)
    try:
        yield lambda: engine.coordinate(agents, swarm_id)
    finally:
        engine.shutdown(swarm_id)


def in_turn(programs: Programs, running: dict[str, Rounds], number: int, every: int) -> dict[str, float]:
    """One round of each program; a peer, which takes long, only each `every` rounds. One that died is
    taken out, and said."""
    samples = {}
    for program, rounds in list(running.items()):
        if program == "limit" or number < 0 or number % max(1, every) == 0:
            time.sleep(SETTLE_S)
            try:
                samples[program] = rounds.sample_ms()
            except RuntimeError as error:
                programs.said[program] = str(error)
                running.pop(program).close()
    return samples


def as_a_user_calls_it(engine: Engine, plan: Plan) -> Iterator[Row]:
    """`message-bus.sh coordinate 708 T`, from the command's start to its end, in turn with the same at
    the socket; their difference is what the command costs."""
    row = f"message-bus.sh coordinate {plan.full}"
    commands: list[float] = []
    differences: list[float] = []
    busy = busy_pct()
    try:
        engine.use(CFN_TOPOLOGY="hybrid")
        for number in range(-1, plan.cold_samples):
            engine.rest()
            at_socket = engine.coordinate(plan.full).acknowledged_ms
            engine.rest()
            script = f"{engine.place.commands}/message-bus.sh"
            whole = engine.run_ms([script, "coordinate", str(plan.full), engine.task_id()])
            if number >= 0:
                commands.append(whole)
                differences.append(whole - at_socket)
    except RefusedError as error:
        yield refused(row, str(error))
        return
    yield measured(row, commands, busy_pct=busy)
    yield measured(f"{row}, beyond cold", differences, busy_pct=busy)
