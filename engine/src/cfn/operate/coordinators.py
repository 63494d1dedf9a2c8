"""What a host's coordinators are, and what may be done to one: decisions over the conductor's health."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cfn.errors import RefusedError, UsageError

UP = "up"
DRAINING = "draining"
DOWN = "down"
ACTIONS = ("drain", "failover", "restart", "return")
DISRUPTIVE = ("drain", "failover", "restart")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """One coordinator as the conductor's health says it. `agents` counts the coordinator itself; null
    for one that is not connected."""

    number: int
    state: str
    pid: int | None = None
    agents: int | None = None
    failovers: int = 0
    last_heartbeat_age_s: float | None = None
    response_time_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The row, with its number as `id`."""
        row = asdict(self)
        return {"id": row.pop("number"), **row}


def listed(health: Mapping[str, Any]) -> list[Coordinator]:
    """The coordinators that are configured or connected, by number; none in a flat topology."""
    return [
        Coordinator(
            number=int(row["id"]),
            state=str(row["state"]),
            pid=row.get("pid"),
            agents=row.get("agents"),
            failovers=int(row.get("failovers", 0)),
            last_heartbeat_age_s=row.get("last_heartbeat_age_s"),
            response_time_ms=row.get("response_time_ms"),
        )
        for row in health.get("coordinators", ())
    ]


def find(coordinators: Sequence[Coordinator], number: int) -> Coordinator:
    """One of them. Raises UsageError naming those that there are."""
    for each in coordinators:
        if each.number == number:
            return each
    known = ", ".join(str(each.number) for each in coordinators)
    raise UsageError(
        f"coordinator {number} does not exist on this host; there are {known}. Nothing was done."
    )


def check(health: Mapping[str, Any], number: int, action: str) -> Coordinator:
    """The coordinator that an action is meant for.

    Raises RefusedError for a flat topology, for a drain of one that is down, and for what would take the
    last healthy one away; UsageError for a number that does not exist.
    """
    coordinators = listed(health)
    if health.get("topology") == "flat" or not coordinators:
        raise RefusedError(
            f"this host's topology is {health.get('topology')}: it has no coordinators. Stages 2 and 3 have."
        )
    found = find(coordinators, number)
    others = [each.number for each in coordinators if each.state == UP and each.number != number]
    if action in DISRUPTIVE and found.state == UP and not others:
        raise RefusedError(
            f"coordinator {number} is the last healthy one: to {action} it would leave nobody to take its "
            "teams. Bring another one back first: cfn coordinators return ID"
        )
    if action == "drain" and found.state not in (UP, DRAINING):
        raise RefusedError(
            f"coordinator {number} is {found.state}, and only one that is up can be drained: "
            f"cfn coordinators failover {number} gives its teams away"
        )
    return found


def changes(found: Coordinator, action: str) -> bool:
    """Whether an action has anything to do. A failover or a restart is an act, and always has."""
    return found.state != {"drain": DRAINING, "return": UP}.get(action)


def predicted(coordinators: Sequence[Coordinator], number: int, action: str) -> list[Coordinator]:
    """The coordinators as an action would leave them."""
    state = {"drain": DRAINING, "return": UP, "failover": UP, "restart": None}[action]
    return [
        Coordinator(number=each.number, state=state or each.state, failovers=each.failovers)
        if each.number == number
        else each
        for each in coordinators
    ]


def imbalance_pct(coordinators: Sequence[Coordinator]) -> float | None:
    """The largest distance of a coordinator's agents from the mean, in % of it; None without any."""
    agents = [each.agents for each in coordinators if each.state == UP and each.agents is not None]
    if not agents or not sum(agents):
        return None
    mean = sum(agents) / len(agents)
    return round(100 * max(abs(each - mean) for each in agents) / mean, 3)
