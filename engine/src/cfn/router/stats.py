"""What the router counts: for `/status` since the generation and since the start, and for Prometheus."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cfn.router.generation import Generation
from cfn.router.job import Ending, Job

_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip


DEMAND_S = 60


@dataclass(slots=True)
class Demand:
    """Requests in each of the last DEMAND_S whole seconds, on a monotonic clock."""

    began_s: float = field(default_factory=time.monotonic)
    seconds: list[int] = field(default_factory=lambda: [0] * (DEMAND_S + 1))
    newest: int = 0

    def add(self, now_s: float) -> None:
        """Count a request."""
        self._advance(now_s)
        self.seconds[self.newest % len(self.seconds)] += 1

    def per_s(self, now_s: float) -> float:
        """The mean over the last DEMAND_S whole seconds, or since the start."""
        self._advance(now_s)
        looked_at_s = min(DEMAND_S, max(1, self.newest - int(self.began_s)))
        recent = sum(self.seconds) - self.seconds[self.newest % len(self.seconds)]
        return recent / looked_at_s

    def _advance(self, now_s: float) -> None:
        now = int(now_s)
        for second in range(max(self.newest, now - len(self.seconds)) + 1, now + 1):
            self.seconds[second % len(self.seconds)] = 0
        self.newest = now


@dataclass(slots=True)
class Counts:
    """Requests and agents by ordered version. Requests over capacity, and those whose version a tester
    chose, are outside the split and counted apart."""

    requests: dict[str, int] = field(default_factory=lambda: {"v1": 0, "v2": 0})
    agents: dict[str, int] = field(default_factory=lambda: {"v1": 0, "v2": 0})
    over_capacity: int = 0
    overrides: int = 0
    fallbacks: int = 0
    refused: int = 0

    def add(self, job: Job) -> None:
        """Count a task as it is routed."""
        if job.reason == "over_capacity":
            self.over_capacity += 1
        elif job.reason == "override":
            self.overrides += 1
        else:
            self.requests[job.ordered] += 1
            self.agents[job.ordered] += job.agents

    @property
    def share_pct(self) -> float | None:
        """V2's share of the requests that the split routed; None before the first."""
        total = sum(self.requests.values())
        return round(100 * self.requests["v2"] / total, 3) if total else None


class Stats:
    """All counters of one router. `registry` is its own, so that several live in one process."""

    def __init__(self) -> None:
        self.total = Counts()
        self.since_generation = Counts()
        self.in_flight = 0
        self.demand = Demand()
        self.registry = CollectorRegistry()
        # A label's child is looked up once, not for each request.
        self._children: dict[tuple[object, ...], Any] = {}
        self._requests = Counter(
            "cfn_router_requests",
            "Coordinations that ended.",
            ["ordered", "served", "outcome", "reason"],
            registry=self.registry,
        )
        self._agents = Counter(
            "cfn_router_agents",
            "Agents of these coordinations by their final state.",
            ["ordered", "state"],
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "cfn_router_fallbacks", "Coordinations V1 was called in for.", ["cause"], registry=self.registry
        )
        self._total_s = Histogram(
            "cfn_router_request_duration_seconds",
            "From the request's arrival to its answer.",
            ["ordered"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._coordination_s = Histogram(
            "cfn_router_coordination_duration_seconds",
            "From the request to the last acknowledgement, of the ordered version.",
            ["ordered"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._share = Gauge(
            "cfn_router_v2_traffic_ratio",
            "Share of V2 in the requests: as ordered, and as observed since the generation.",
            ["kind"],
            registry=self.registry,
        )
        self._gauges = {
            name: Gauge(f"cfn_router_{name}", text, registry=self.registry)
            for name, text in (
                ("in_flight", "Coordinations under way."),
                ("v1_running", "V1 commands that run."),
                ("v1_waiting", "Coordinations that wait for a V1 slot."),
                ("generation", "Number of the configuration in force."),
                ("epoch", "Epoch of the configuration in force."),
                ("config_problem", "1 if the configuration file is not what is in force."),
                ("events_lost", "Events that could not be written since the start."),
                ("answers_lost", "Answers that a restart would not find."),
                ("v1_capacity", "Coordinations per second that V1 bears, declared or measured."),
                ("demand", "Requests per second over the last minute."),
                ("engine_silent_seconds", "For how long the engine has not answered."),
                ("connections", "Connections of callers that are open."),
            )
        }
        self._breaker = Gauge(
            "cfn_router_breaker_state",
            "1 for the state that the breaker is in.",
            ["state"],
            registry=self.registry,
        )
        self._breaker_moves = Gauge(
            "cfn_router_breaker_transitions",
            "How often the breaker came into a state since the start.",
            ["state"],
            registry=self.registry,
        )
        self._shadow = Gauge(
            "cfn_router_shadow_requests",
            "Tasks of V1 that were to be repeated on V2 since the start, by how they compared.",
            ["result"],
            registry=self.registry,
        )

    def put_in_force(self, generation: Generation) -> None:
        """Begin to count for a generation."""
        self.since_generation = Counts()
        version_pct = generation.traffic_pct if generation.config.coordination_version == "v2" else 0
        self._share.labels("ordered").set(version_pct / 100)
        self._gauges["generation"].set(generation.number)
        self._gauges["epoch"].set(generation.config.epoch)

    def began(self, job: Job) -> None:
        """A task was routed here."""
        self.in_flight += 1
        self.demand.add(time.monotonic())
        self.total.add(job)
        self.since_generation.add(job)

    def resumed(self) -> None:
        """A task that another process routed, and counted, is under way again."""
        self.in_flight += 1

    def dropped(self) -> None:
        """A task of the last process turned out never to have been started."""
        self.in_flight -= 1

    def ended(self, job: Job, ending: Ending, *, states: Mapping[str, int], total_s: float) -> None:
        """A task was answered or given up; `states` are those of the ending's coordination."""
        self.in_flight -= 1
        self._child(self._requests, job.ordered, ending.served, ending.outcome, job.reason).inc()
        for state, count in states.items():
            if count:
                self._child(self._agents, job.ordered, state).inc(count)
        if ending.fallback:
            self.total.fallbacks += 1
            self.since_generation.fallbacks += 1
            self._child(self._fallbacks, ending.fallback).inc()
        if ending.outcome == "refused":
            self.total.refused += 1
            self.since_generation.refused += 1
        self._child(self._total_s, job.ordered).observe(total_s)
        self._child(self._coordination_s, job.ordered).observe(ending.own.coordination_time_ms / 1000)

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def exposition(
        self,
        gauges: Mapping[str, float | None],
        *,
        breaker: str,
        breaker_moves: Mapping[str, int],
        shadow: Mapping[str, int],
    ) -> bytes:
        """The text that Prometheus reads; `gauges` are set to what they are now (None: not known)."""
        for name, value in gauges.items():
            self._gauges[name].set(math.nan if value is None else value)
        for state, moves in breaker_moves.items():
            self._breaker.labels(state).set(state == breaker)
            self._breaker_moves.labels(state).set(moves)
        for result, count in shadow.items():
            self._shadow.labels(result).set(count)
        self._gauges["in_flight"].set(self.in_flight)
        self._gauges["demand"].set(self.demand.per_s(time.monotonic()))
        share_pct = self.since_generation.share_pct
        self._share.labels("observed").set(math.nan if share_pct is None else share_pct / 100)
        return generate_latest(self.registry)

    def as_json(self) -> dict[str, Any]:
        """The part of `/status` that is counted."""
        now = self.since_generation
        return {
            "observed": {"since_generation": dict(now.requests), "total": dict(self.total.requests)},
            "observed_share_pct": now.share_pct,
            "agents": {"since_generation": dict(now.agents), "total": dict(self.total.agents)},
            "fallbacks": {"since_generation": now.fallbacks, "total": self.total.fallbacks},
            "over_capacity": {"since_generation": now.over_capacity, "total": self.total.over_capacity},
            "overrides": {"since_generation": now.overrides, "total": self.total.overrides},
            "refused": {"since_generation": now.refused, "total": self.total.refused},
            "demand_per_s": round(self.demand.per_s(time.monotonic()), 3),
            "in_flight": self.in_flight,
        }
