"""What the conductor gives a hub to do, and what it hears back: a request's or a swarm's team.

A team is the part of a swarm that lives on one hub. Orders and outcomes cross a socket between
conductor and coordinator as JSON, with payload or results as raw bytes behind it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cfn.coordination import AgentResult, AgentState, Tally, as_result

LOCAL_HUB = 0  # the conductor's own
NO_HOST = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamOrder:
    """A team's part of a request. `kept`: the swarm outlives it. `shared`: other teams have parts of it
    too. `key` is the request's, `epoch` this order's. Slots `base` and on of the shard are the agents',
    in their order. `fresh`: nothing of it can have been started. `given_up`:
    start nothing, only find out what was. `lost` are indices whose deliveries a lab fault loses."""

    task_id: str
    swarm_id: str
    team: str
    kept: bool
    shared: bool
    key: int
    epoch: int
    shard: int
    base: int
    agents: tuple[str, ...]
    accepted_at_s: float
    deadline_ms: int
    command: tuple[str, ...]
    timeout_ms: int
    max_output_bytes: int
    slow_ms: int
    lost: tuple[int, ...]
    fresh: bool
    given_up: str = ""

    @property
    def deadline_at_s(self) -> float:
        """When what is not claimed will be given up, on the monotonic clock."""
        return self.accepted_at_s + self.deadline_ms / 1000

    def as_json(self) -> dict[str, Any]:
        """For the socket to a coordinator."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TeamOrder":
        """The inverse. Raises KeyError, TypeError or ValueError for what is none."""
        fields = dict(value)
        for name in ("agents", "command", "lost"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamOutcome:
    """A team's agents as of now. Times are of the last acknowledgement and the last end, 0 before the
    first. `results` are the agents' results as JSON objects with commas between them. `long_outputs`:
    some are in files, which the conductor removes with the request."""

    tally: Tally
    last_ack_s: float
    last_end_s: float
    unclaimed: int
    long_outputs: bool
    results: bytes

    @property
    def started(self) -> bool:
        """Whether any agent was started, as far as is known."""
        return self.tally.agents > self.tally[AgentState.UNDELIVERED] + self.tally[AgentState.WAITING]

    def head(self) -> dict[str, Any]:
        """All but `results`, for the socket to the conductor."""
        return {
            "tally": dict(self.tally),
            "last_ack_s": self.last_ack_s,
            "last_end_s": self.last_end_s,
            "unclaimed": self.unclaimed,
            "long_outputs": self.long_outputs,
        }

    @classmethod
    def from_head(cls, head: Mapping[str, Any], results: bytes) -> "TeamOutcome":
        """The inverse. Raises KeyError, TypeError or ValueError for what is none."""
        return cls(
            tally=Tally({str(state): int(count) for state, count in head["tally"].items()}),
            last_ack_s=float(head["last_ack_s"]),
            last_end_s=float(head["last_end_s"]),
            unclaimed=int(head["unclaimed"]),
            long_outputs=bool(head["long_outputs"]),
            results=results,
        )


def results_json(results: Sequence[AgentResult]) -> bytes:
    """Results as TeamOutcome carries them. Most agents of a team say the same: what follows the name
    is made once for all who do."""
    tails: dict[tuple[object, ...], str] = {}
    parts = []
    for result in results:
        same = (result.state, result.exit_code, result.output, result.reason)
        tail = tails.get(same)
        if tail is None:
            text = json.dumps(as_result(result), separators=(",", ":"))
            tail = tails[same] = text[text.index(',"state":') :]
        parts.append(f'{{"agent":"{result.agent}"{tail}')
    return ",".join(parts).encode()
