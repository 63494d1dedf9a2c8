"""V1 without the router: what a client does while the router itself is down.

The promise that an id is run once holds over that: a task which the router knows is not run here, and
one that was run here is known to the router when it is back. Each has a file of its id, held by a lock
while it runs, with the answer in it.
"""

import asyncio
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cfn import release
from cfn.config import Config
from cfn.coordination import AgentState
from cfn.engine.log import log
from cfn.errors import CfnError, RefusedError
from cfn.ids import agent_ids
from cfn.paths import Paths
from cfn.router.answers import knows
from cfn.router.decision import outcome_of, route, uniform
from cfn.router.events import EventLog
from cfn.router.generation import Generation, GenerationBook, as_number
from cfn.router.job import Ending, Job, answer, coordination_event
from cfn.router.request import Request
from cfn.router.runner import unknown
from cfn.router.v1 import V1

RUNNING = b""


def folder(paths: Paths) -> Path:
    """Where the answers of such tasks are."""
    return paths.state / "router" / "direct"


def kept(place: Path | str, task_id: str) -> bytes | None:
    """The answer of a task that was run directly, RUNNING while it runs, None if there was none such."""
    try:  # once for each new task of the router's: text is cheaper than a path
        descriptor = os.open(f"{place}/{task_id}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.read(descriptor, 1 << 30)
    except BlockingIOError:
        return RUNNING
    finally:
        os.close(descriptor)


def sweep(place: Path, retention_s: float, now_unix_s: float) -> None:
    """Forget what is older than the retention."""
    with suppress(OSError):
        for file in place.iterdir():
            if now_unix_s - file.stat().st_mtime > retention_s:
                file.unlink(missing_ok=True)


async def coordinate(
    paths: Paths, config: Config, request: Request, *, why: str, deadline_ms: int
) -> dict[str, Any]:
    """Run a task on V1 and return its answer, in the form of the router's.

    Raises RefusedError if the router knows the task, or there is no V1, and CfnError if the files
    that keep the promise cannot be written.
    """
    if not config.v1_enabled:
        raise RefusedError(f"{why}; and there is no V1 (CFN_V1_ENABLED is false)")
    try:
        known_there = knows(paths.state / "router" / "answers.journal", request.task_id)
    except OSError as error:
        raise CfnError(f"{why}; whether it knows the task cannot be read: {error}") from error
    if known_there:
        raise RefusedError(f"{why}; it knows task {request.task_id}, so ask for it when it is back")
    known = kept(folder(paths), request.task_id)
    if known == RUNNING:
        raise RefusedError(f"task {request.task_id} is being run on V1 directly")
    if known is not None:
        return dict(json.loads(known))
    generation = GenerationBook(paths.state / "router" / "generation.json").in_force(config)
    job = _job(config, request, generation)
    descriptor = _claim(paths, job, why)
    try:
        began_s = asyncio.get_running_loop().time()
        result = await V1(paths).run(
            request.task_id,
            agent_ids(request.agents),
            payload=request.payload,
            config=config,
            arrived_s=began_s,
            deadline_s=began_s + deadline_ms / 1000,
        )
        own = result.coordination
        if job.ordered == "v2":
            own = uniform(job.task_id, agent_ids(job.agents), AgentState.UNDELIVERED, why, elapsed_ms=0.0)
        ending = Ending(
            coordination=result.coordination,
            own=own,
            served="v1" if result.ran else "none",
            outcome=outcome_of(result.coordination),
            fallback="error" if job.ordered == "v2" else None,
            detail="; ".join(part for part in (why, result.problem) if part),
        )
        body = answer(job, ending).body
        os.pwrite(descriptor, body, 0)
        os.ftruncate(descriptor, len(body))
        if generation is not None:
            _record(paths, job, ending, total_s=asyncio.get_running_loop().time() - began_s)
        return dict(json.loads(body))
    finally:
        os.close(descriptor)


def _job(config: Config, request: Request, generation: Generation | None) -> Job:
    where = route(config, request.task_id, request.agents, sticky_key=request.sticky_key)
    return Job(
        task_id=request.task_id,
        agents=request.agents,
        bucket=where.bucket,
        generation=generation.number if generation else 0,
        version=config.coordination_version,
        traffic_pct=as_number(float(config.traffic_pct)),
        ordered=where.ordered,
        reason=where.reason,
        arrived_unix_s=time.time(),
        sticky_key=request.sticky_key,
    )


def _claim(paths: Paths, job: Job, why: str) -> int:
    """The descriptor of the task's file, made and locked by this process; until it has another answer
    it says that the task is unknown."""
    place = folder(paths)
    try:
        place.mkdir(mode=0o750, exist_ok=True)
        _as_folder(place)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(place / job.task_id, flags, 0o640)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _as_folder(place / job.task_id)
        os.write(descriptor, answer(job, unknown(job, f"{why}; V1 was begun, and did not end")).body)
    except FileExistsError:
        raise RefusedError(f"task {job.task_id} is being run on V1 directly") from None
    except OSError as error:
        raise CfnError(f"{why}; V1 is not run directly, since {place} cannot be written: {error}") from error
    return descriptor


def _record(paths: Paths, job: Job, ending: Ending, *, total_s: float) -> None:
    """The event, as the router would have written it."""
    events = EventLog(paths.events)
    event = coordination_event(
        job,
        ending,
        states=ending.coordination.states,
        host=socket.gethostname(),
        release=release.version(),
        now_unix_s=time.time(),
        total_s=total_s,
    )
    events.append(event)
    events.close()
    if events.lost:
        log("events-lost", path=paths.events, error=events.problem)
    else:
        _as_folder(paths.events)


def _as_folder(path: Path) -> None:
    """Give a file that root made to the owner of its folder, so that the router can use it."""
    owner = path.parent.stat()
    if os.geteuid() == 0 and path.stat().st_uid != owner.st_uid:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
