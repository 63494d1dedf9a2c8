"""What the router counts: for `/status` since the generation and since the start, and for Prometheus."""

from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cfn.router.generation import Generation
from cfn.router.job import Ending, Job

_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
)  # fmt: skip


@dataclass(slots=True)
class Counts:
    """Requests and agents by ordered version. Requests over capacity are outside the split and
    counted apart."""

    requests: dict[str, int] = field(default_factory=lambda: {"v1": 0, "v2": 0})
    agents: dict[str, int] = field(default_factory=lambda: {"v1": 0, "v2": 0})
    over_capacity: int = 0
    fallbacks: int = 0

    def add(self, job: Job) -> None:
        """Count a task as it is routed."""
        if job.reason == "over_capacity":
            self.over_capacity += 1
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
        self.registry = CollectorRegistry()
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
            )
        }

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
        self.total.add(job)
        self.since_generation.add(job)

    def resumed(self) -> None:
        """A task that another process routed, and counted, is under way again."""
        self.in_flight += 1

    def dropped(self) -> None:
        """A task of the last process turned out never to have been started."""
        self.in_flight -= 1

    def ended(self, job: Job, ending: Ending, *, total_s: float) -> None:
        """A task was answered or given up."""
        self.in_flight -= 1
        self._requests.labels(job.ordered, ending.served, ending.outcome, job.reason).inc()
        for state, count in ending.coordination.states.items():
            if count:
                self._agents.labels(job.ordered, state).inc(count)
        if ending.fallback:
            self.total.fallbacks += 1
            self.since_generation.fallbacks += 1
            self._fallbacks.labels(ending.fallback).inc()
        self._total_s.labels(job.ordered).observe(total_s)
        self._coordination_s.labels(job.ordered).observe(ending.own.coordination_time_ms / 1000)

    def exposition(self, **gauges: float) -> bytes:
        """The text that Prometheus reads; `gauges` are set to what they are now."""
        for name, value in gauges.items():
            self._gauges[name].set(value)
        self._gauges["in_flight"].set(self.in_flight)
        share_pct = self.since_generation.share_pct
        self._share.labels("observed").set(float("nan") if share_pct is None else share_pct / 100)
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
            "in_flight": self.in_flight,
        }
