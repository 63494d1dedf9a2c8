"""Who is in which team, and which hub has it: pure decisions of the conductor."""

from collections.abc import Mapping, Sequence

from cfn.engine.request_log import TeamPlan

FLAT_TEAM = "team-1"  # everybody is in one team, on the conductor
GUESTS = "guests"  # agents from outside, on the conductor too
HYBRID_FROM = 4  # agents for each coordinator: fewer run flat, where a message takes one hop less


def coordinators_for(agents: int, coordinators: int) -> int:
    """How many coordinators have a part in a swarm of this size; 0 for a flat one."""
    return coordinators if agents >= HYBRID_FROM * coordinators else 0


def shares(workers: int, teams: int) -> list[int]:
    """Workers for each team, at most one apart."""
    least, more = divmod(workers, teams)
    return [least + (position < more) for position in range(teams)]


def team_name(number: int) -> str:
    """A team's name; its number is also its shard."""
    return f"team-{number}"


def coordinator_agent(team: str) -> str:
    """The agent that a team's coordinator counts as."""
    return "coordinator-" + team.removeprefix("team-")


def numbered(agents: int, coordinators: int) -> list[TeamPlan]:
    """The teams of a swarm of numbered agents, slots not yet taken. With coordinators, each counts as
    an agent, and the workers are numbered through all teams."""
    if not coordinators:
        return [TeamPlan(team=FLAT_TEAM, shard=0, base=0, first=1, count=agents)]
    plans, first = [], 1
    for number, count in enumerate(shares(agents - coordinators, coordinators), start=1):
        plans.append(TeamPlan(team=team_name(number), shard=number, base=0, first=first, count=count))
        first += count
    return plans


def named(agents: Sequence[str], coordinators: int) -> list[TeamPlan]:
    """The teams of agents that were named, slots not yet taken. Coordinators do not count."""
    if not coordinators:
        return [TeamPlan(team=FLAT_TEAM, shard=0, base=0, named=tuple(agents))]
    plans, first = [], 0
    for number, count in enumerate(shares(len(agents), coordinators), start=1):
        part = tuple(agents[first : first + count])
        if part:
            plans.append(TeamPlan(team=team_name(number), shard=number, base=0, named=part))
        first += count
    return plans


def least_loaded(load: Mapping[int, int]) -> int:
    """The hub with the fewest workers, the lowest number among equals. Raises ValueError without any."""
    return min(load, key=lambda hub: (load[hub], hub))
