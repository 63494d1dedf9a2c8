"""The account of a soak: what became of every coordination, and whether a fault explains it. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from cfn.load.account import percentile

BEFORE_S = 1.0  # a fault is noted after it was done
AFTER_S = 15.0  # until the engine is whole again: restart, failover, and the deadline of one agent
KEPT = 20  # of each list in the report


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One coordination; times in seconds since the soak began. `states` is empty without an answer,
    and `error` says why: the engine's refusal, or that nobody answered."""

    task_id: str
    agents: int
    began_s: float
    ended_s: float
    states: Mapping[str, int] = field(default_factory=dict)
    coordination_time_ms: float | None = None
    retries: int = 0
    error: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One process that was killed."""

    at_s: float
    role: str
    number: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The engine's resources at one time; memory is the sum of proportional set sizes. `daemons`: the
    process ids of all but the workers, with their roles."""

    at_s: float
    daemons: Mapping[int, str]
    processes: Mapping[str, int]
    memory_mb: float
    descriptors: int
    tmpfs_mb: float


def explained(asked: Asked, faults: Sequence[Fault]) -> bool:
    """Whether a fault was near enough to this coordination to be the cause of what it reports."""
    return any(asked.began_s - AFTER_S <= fault.at_s <= asked.ended_s + BEFORE_S for fault in faults)


def died_by_themselves(readings: Sequence[Reading], faults: Sequence[Fault]) -> list[str]:
    """The roles of the daemons that are gone from one reading to the next though nobody killed them."""
    killed = {fault.pid for fault in faults}
    return [
        role
        for early, late in pairwise(readings)
        for pid, role in early.daemons.items()
        if pid not in late.daemons and pid not in killed
    ]


def account(
    asked: Sequence[Asked],
    faults: Sequence[Fault],
    readings: Sequence[Reading],
    *,
    left_over: int,
    problem: str,
) -> dict[str, Any]:
    """The report as JSON. `ok` is false if something is unaccounted: a coordination without an answer,
    states that do not sum to its agents, a refusal, an agent not done without a fault near it, a worker
    that lives after its swarm (`left_over`), a daemon that died by itself, or a `problem` that ended
    the run."""
    answered = [one for one in asked if one.states]
    states: Counter[str] = Counter()
    for one in answered:
        states.update(one.states)
    agents = sum(one.agents for one in answered)
    unanswered = [one for one in asked if not one.states and not one.refused]
    refused = [one for one in asked if one.refused]
    wrong_sum = [one for one in answered if sum(one.states.values()) != one.agents]
    not_whole = [one for one in answered if one.states.get("done", 0) != one.agents]
    unexplained = [one for one in not_whole if not explained(one, faults)]
    died = died_by_themselves(readings, faults)
    times = [one.coordination_time_ms for one in answered if one.coordination_time_ms is not None]
    findings = {
        "unanswered": unanswered,
        "refused": refused,
        "wrong_sum": wrong_sum,
        "not_done_without_a_fault": unexplained,
    }
    shown = findings | {"not_whole": not_whole}
    return {
        "ok": bool(asked) and not any(findings.values()) and left_over == 0 and not died and not problem,
        "problem": problem,
        "coordinations": len(asked),
        "answered": len(answered),
        "agents": agents,
        "states": dict(states),
        "delivery_rate_pct": _share(agents - states["undelivered"], agents),
        "completion_rate_pct": _share(states["done"], agents),
        "coordination_time_ms": {
            f"p{share}": percentile(times, share) for share in (50, 95, 99, 100) if times
        },
        "retries": sum(one.retries for one in asked),
        "not_whole": len(not_whole),
        "left_over": left_over,
        "died_by_themselves": dict(Counter(died)),
        **{name: len(found) for name, found in findings.items()},
        "kills": dict(Counter(fault.role for fault in faults)),
        "first": {name: [asdict(one) for one in found[:KEPT]] for name, found in shown.items()},
        "faults": [asdict(fault) for fault in faults],
        "start": asdict(readings[0]) if readings else None,
        "end": asdict(readings[-1]) if readings else None,
        "readings": [asdict(reading) for reading in readings],
    }


def _share(part: int, whole: int) -> float:
    return round(100 * part / whole, 4) if whole else 0.0


def summary(reading: Reading) -> str:
    """A reading in words."""
    return (
        f"{sum(reading.processes.values())} processes, {reading.memory_mb:.0f} MB, "
        f"{reading.descriptors} descriptors, {reading.tmpfs_mb:.1f} MB of tmpfs"
    )


def render(report: Mapping[str, Any]) -> str:
    """The account in a few lines."""
    times = ", ".join(f"{name} {value:.1f}" for name, value in report["coordination_time_ms"].items())
    lines = [
        f"{report['coordinations']} coordinations, {report['answered']} answered, "
        f"{report['retries']} asked again while nobody answered",
        f"{report['agents']} agents: " + ", ".join(f"{n} {state}" for state, n in report["states"].items()),
        f"delivery {report['delivery_rate_pct']} %, completion {report['completion_rate_pct']} %, "
        f"coordination time in ms: {times or 'none'}",
        "killed: " + (", ".join(f"{n} {role}" for role, n in report["kills"].items()) or "nothing"),
        ", ".join(
            f"{name.replace('_', ' ')}: {report[name]}"
            for name in ("unanswered", "refused", "wrong_sum", "not_done_without_a_fault", "left_over")
        ),
    ]
    for name in ("start", "end"):
        if report[name]:
            lines.append(f"{name:5} {summary(Reading(**report[name]))}")
    if died := report["died_by_themselves"]:
        lines.append("died by themselves: " + ", ".join(f"{n} {role}" for role, n in died.items()))
    lines += [f"ended early: {report['problem']}"] if report["problem"] else []
    lines.append("everything is accounted for" if report["ok"] else "NOT everything is accounted for")
    return "\n".join(lines)
