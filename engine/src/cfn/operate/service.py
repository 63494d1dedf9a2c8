"""How long a swarm's workers are without service when something is done to their coordinator.

One coordination is in flight while it is done; then coordinations are repeated until one reaches
every agent. The last of their acknowledgements is when the last worker was served again.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cfn.client import Client, raise_error
from cfn.errors import CfnError, NotDeliveredError
from cfn.operate.engine_client import unique
from cfn.paths import Paths

DEADLINE_MS = 10_000  # of one coordination, for its acknowledgements
PAUSE_S = 0.1
PATIENCE_S = 300.0  # for an answer: agents may work meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """`seconds` from the order to the last acknowledgement of a coordination that was asked for after
    it was carried out and reached everybody; `coordinations` that took; agents by state, summed."""

    seconds: float
    coordinations: int
    states: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """As an object."""
        return {
            "seconds": round(self.seconds, 3),
            "coordinations": self.coordinations,
            "states": dict(self.states),
        }


def disturbed(
    here: Paths, swarm_id: str, agents: int, act: Callable[[], object], *, within_s: float
) -> Served:
    """Do something in the middle of a coordination, and say how long it took until all were served again.

    Blocks. Raises NotDeliveredError when not all are served within `within_s`, CfnError of `act`.
    """
    with Client(here.conductor_socket, timeout_s=PATIENCE_S) as client:
        running = _begin(client, swarm_id, agents)
        struck_s = time.monotonic()
        act()
        rounds = [_finish(*running)]
    while len(rounds) == 1 or rounds[-1][1]["done"] != agents:
        if time.monotonic() - struck_s > within_s:
            raise NotDeliveredError(
                f"{rounds[-1][1]['done']} of {agents} agents are served {time.monotonic() - struck_s:.1f} s "
                f"after it was ordered, allowed {within_s:g} s for all of them"
            )
        try:
            with Client(here.conductor_socket, timeout_s=PATIENCE_S) as client:
                rounds.append(_finish(*_begin(client, swarm_id, agents)))
        except CfnError:  # it says so itself if that lasts: the time runs out
            time.sleep(PAUSE_S)
    states = [found for _, found in rounds]
    return Served(
        seconds=max(at_s for at_s, _ in rounds) - struck_s,
        coordinations=len(rounds),
        states={state: sum(each[state] for each in states) for state in states[0]},
    )


def _begin(client: Client, swarm_id: str, agents: int) -> tuple[float, Iterator[dict[str, Any]]]:
    """Ask for a coordination; returns when it is accepted."""
    asked_s = time.monotonic()
    answers = client.request(
        {
            "verb": "coordinate",
            "task_id": unique("served"),
            "agents": agents,
            "swarm_id": swarm_id,
            "deadline_ms": DEADLINE_MS,
        }
    )
    raise_error(next(answers))
    return asked_s, answers


def _finish(asked_s: float, answers: Iterator[dict[str, Any]]) -> tuple[float, dict[str, int]]:
    """When the coordination's last acknowledgement was, and its agents by state."""
    answer = next(answers)
    raise_error(answer)
    return asked_s + answer["coordination_time_ms"] / 1_000, answer["states"]
