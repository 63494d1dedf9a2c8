"""Memory, descriptors and tmpfs of a swarm that is kept and has done its first work."""

from collections import defaultdict
from collections.abc import Iterator

from engine.bench import processes
from engine.bench.engine import Engine, RefusedError
from engine.bench.plan import Plan
from engine.bench.table import Row, measured, refused

MB = 1_000_000


def rows(engine: Engine, plan: Plan) -> Iterator[Row]:
    """The rows of the full size, hybrid. The engine should be new: earlier results take tmpfs too."""
    title = f"{plan.full} agents, hybrid"
    try:
        engine.use(CFN_TOPOLOGY="hybrid")
        swarm_id = engine.init(plan.full)
        try:
            engine.coordinate(plan.full, swarm_id)
            yield from figures(engine, title)
        finally:
            engine.shutdown(swarm_id)
    except RefusedError as error:
        yield refused(f"memory, descriptors and tmpfs, {title}", str(error), "MB")


def figures(engine: Engine, title: str) -> Iterator[Row]:
    """The rows of the processes that live now. Raises RefusedError if one ends meanwhile."""
    memory: defaultdict[str, list[float]] = defaultdict(list)
    descriptors: defaultdict[str, list[float]] = defaultdict(list)
    for process in engine.processes():
        pss, open_files = processes.pss_bytes(process.pid), processes.descriptors(process.pid)
        if pss is None or open_files is None:
            raise RefusedError(f"a {process.role} ended while it was looked at")
        memory[process.role].append(pss / MB)
        descriptors[process.role].append(open_files)
    for role in processes.ROLES:
        if memory[role]:
            yield measured(f"memory (PSS) of a {role}, {title}", memory[role], "MB")
    yield measured(f"memory (PSS) of all processes, {title}", [sum(map(sum, memory.values()))], "MB")
    for role in processes.ROLES:
        if descriptors[role]:
            yield measured(f"descriptors of a {role}, {title}", descriptors[role], "count")
    yield measured(f"descriptors of all processes, {title}", [sum(map(sum, descriptors.values()))], "count")
    yield measured(f"tmpfs used, {title}", [processes.tree_bytes(engine.paths.shm) / MB], "MB")
