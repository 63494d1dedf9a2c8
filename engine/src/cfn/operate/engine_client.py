"""Asking the conductor: one question, its final answer, and a swarm that lives as long as a block."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cfn.client import Client, raise_error
from cfn.errors import CfnError, NotDeliveredError, NotRunningError
from cfn.paths import Paths

ANSWER_S = 30.0
POLL_S = 0.05


def ask(here: Paths, *, timeout_s: float = ANSWER_S, **request: Any) -> dict[str, Any]:
    """One request, its final answer. Raises CfnError: the conductor's own words, or that it is not there."""
    with Client(here.conductor_socket, timeout_s=timeout_s) as client:
        answer = client.final(request)
    raise_error(answer)
    return answer


def health(here: Paths) -> dict[str, Any]:
    """How the engine stands. Raises NotRunningError."""
    return ask(here, verb="health", timeout_s=5.0)


def until(satisfied: Callable[[], bool], limit_s: float) -> bool:
    """Wait for something, asking again and again; whether it came to be. A conductor between two lives is
    asked again."""
    ends_s = time.monotonic() + limit_s
    while True:
        with suppress(NotRunningError):
            if satisfied():
                return True
        if time.monotonic() >= ends_s:
            return False
        time.sleep(POLL_S)


def unique(word: str) -> str:
    """An id that nobody used before, of a word that says whose it is."""
    return f"{word}-{time.time_ns() // 1_000:x}-{os.getpid():x}"


@contextmanager
def swarm(here: Paths, agents: int, word: str) -> Iterator[str]:
    """A kept swarm of that many agents; ended with the block, whatever happens in it. Yields its id.

    Raises NotDeliveredError when not all of its agents come.
    """
    swarm_id = unique(word)
    try:
        made = ask(here, verb="init", agents=agents, swarm_id=swarm_id)
        if made["live"] != agents:
            raise NotDeliveredError(
                f"{made['live']} of {agents} agents of a swarm are there: {made['reason']}"
            )
        yield swarm_id
    finally:
        end(here, swarm_id)


def end(here: Paths, swarm_id: str) -> bool:
    """End a swarm; whether there was one and it has ended."""
    try:
        ask(here, verb="shutdown", swarm_id=swarm_id)
    except CfnError:
        return False
    return True
