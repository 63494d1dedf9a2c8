"""What to send and when: fixed in advance, without any I/O, by the seed alone."""

import ipaddress
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from cfn.errors import UsageError
from cfn.ids import check_id
from cfn.router.request import MAX_AGENTS, MAX_DEADLINE_MS

MAX_REQUESTS = 5_000_000
MAX_CONCURRENCY = 10_000
# Every request is given up after this, whatever its deadline.
MAX_ANSWER_S = 7_200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """A stream of `requests` coordinations at `rate_per_s`, to `router` (`unix:/PATH` or
    `http://HOST:PORT`).

    `sizes` are pairs of agents and weight. Ids are `prefix`-`seed`-1, -2, ...: a plan run again asks
    for the same ids, and gets the answers that it got before. At most `concurrency` requests are
    under way; one that has to wait for that starts late and is reported so. `answer_s` is how long
    an answer is waited for. `swarm_id` names a kept swarm of V2's that runs all of it.
    """

    router: str
    rate_per_s: float
    requests: int
    prefix: str
    seed: int = 1
    sizes: tuple[tuple[int, int], ...] = ((1, 1),)
    payload: str = ""
    swarm_id: str = ""
    deadline_ms: int | None = None
    concurrency: int = 256
    answer_s: float = 120.0
    allow_remote: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError or IdError for a plan that is not bounded, or not allowed."""
        check_id("task", f"{self.prefix}-{self.seed}-{self.requests}")
        if self.swarm_id:
            check_id("swarm", self.swarm_id)
        _within("rate", self.rate_per_s, 0.001, 100_000)
        _within("requests", self.requests, 1, MAX_REQUESTS)
        _within("concurrency", self.concurrency, 1, MAX_CONCURRENCY)
        _within("seed", self.seed, 0, 2**63)
        _within("answer time in s", self.answer_s, 0.1, MAX_ANSWER_S)
        if self.deadline_ms is not None:
            _within("deadline in ms", self.deadline_ms, 1, MAX_DEADLINE_MS)
        if not self.sizes:
            raise UsageError("sizes are empty; at least one AGENTS:WEIGHT is needed")
        for agents, weight in self.sizes:
            _within("agents", agents, 1, MAX_AGENTS)
            _within("weight", weight, 1, 1_000_000)
        if not self.allow_remote and not _is_local(self.router):
            raise UsageError(
                f"router {self.router!r} is not on this host; only unix:/PATH and http:// on loopback "
                "are allowed without --allow-remote"
            )


@dataclass(frozen=True, slots=True)
class Shot:
    """One request of the stream: when it is due, in seconds from the start."""

    due_s: float
    task_id: str
    agents: int


def schedule(plan: LoadPlan) -> Iterator[Shot]:
    """The stream: evenly spaced, sizes drawn from the seed."""
    draw = random.Random(plan.seed)  # noqa: S311 - reproducible, not secret
    sizes = [agents for agents, _ in plan.sizes]
    weights = [weight for _, weight in plan.sizes]
    for number in range(plan.requests):
        agents = draw.choices(sizes, weights)[0]
        yield Shot(number / plan.rate_per_s, f"{plan.prefix}-{plan.seed}-{number + 1}", agents)


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """`1:60,10:35,100:5` as pairs of agents and weight. Raises UsageError."""
    if not re.fullmatch(r"[0-9]{1,6}:[0-9]{1,7}(,[0-9]{1,6}:[0-9]{1,7})*", text):
        raise UsageError(f"sizes {text!r}: AGENTS:WEIGHT,... is allowed, as in 1:60,10:35,100:5")
    pairs = [part.split(":") for part in text.split(",")]
    return tuple((int(agents), int(weight)) for agents, weight in pairs)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} of {value:g}: {low:g} to {high:g} is allowed")


def _is_local(router: str) -> bool:
    if router.startswith("unix:/"):
        return True
    parts = urlsplit(router)
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"router {router!r}: unix:/PATH and http://HOST:PORT are allowed")
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False
