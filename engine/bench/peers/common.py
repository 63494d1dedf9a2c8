"""What the peers share: how a round is asked for, and how their processes are started and ended."""

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

INSTALL = "pip install --require-hashes --no-deps -r engine/bench/peers/requirements.txt"
TASK = b"task"
LIMIT_S = 60.0  # for a round, after which a client must have died


def arguments() -> tuple[bool, int]:
    """(warm, number of clients) from the command line; every process may open what the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.argv[1] == "warm", int(sys.argv[2])


def need(server: str) -> str:
    """The path of the server program; ends this program with a word if it is not installed."""
    path = shutil.which(server)
    if path is None:
        skip(f"{server} is not installed (apt-get install {server})")
    return str(path)


def skip(reason: str) -> None:
    """Say why this peer cannot run here, and end."""
    print(f"skipped: {reason}", flush=True)
    sys.exit(0)


def fork(life: Callable[[int], None], number: int) -> int:
    """A process that does `life(number)` and ends; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        life(number)
    except BaseException as error:  # the parent sees the exit code; the traceback goes to stderr
        print(f"client {number}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def reap(children: list[int]) -> None:
    """Wait for all of them. Raises RuntimeError if one failed."""
    for child in children:
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"a client ended with {os.waitstatus_to_exitcode(status)}")
    children.clear()


def serve(one_round: Callable[[], None], after: Callable[[], None]) -> None:
    """Do a round, then `after`, for each line on standard input; print the microseconds of the round."""
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        one_round()
        ended = time.perf_counter()
        after()
        print(f"{(ended - began) * 1e6:.0f}", flush=True)


def wait_for(ready: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Block until `ready()`. Raises TimeoutError."""
    ends = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > ends:
            raise TimeoutError("the server did not start")
        time.sleep(0.02)


def is_socket(path: Path) -> bool:
    """Whether a server listens there already (its socket exists)."""
    return path.is_socket()
