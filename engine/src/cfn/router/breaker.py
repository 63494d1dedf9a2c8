"""The breaker, without any I/O: after repeated failures of V2, or while the engine is dead, all of V2's
requests go to V1, until somebody decides otherwise.

    closed -> open            so many bad requests of the last ones; an engine that is silent; an order
    open -> half_open         its time has come to try one request on V2 (only if probes are configured)
    half_open -> open         a probe went badly
    open, half_open -> closed an order, and nothing else: a good probe is evidence, not a decision

Times are seconds of a monotonic clock, so that a clock that is set moves nothing.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from cfn.config import Config
from cfn.coordination import AgentState
from cfn.router.decision import V2End, V2Result

AUTOMATIC = "router"


class State(StrEnum):
    """Where the breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


Admission = Literal["v2", "probe", "held"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When it opens. A `failures` of 0, an `engine_s` of 0 and a `probe_s` of 0 turn that rule off."""

    window_requests: int
    failures: int
    minimum_requests: int
    engine_s: float
    probe_s: float

    @classmethod
    def of(cls, config: Config) -> "Rules":
        """The configured rules. Without V1 there is nowhere else to go, and nothing opens it."""
        return cls(
            window_requests=config.breaker_window_requests,
            failures=config.breaker_failures if config.v1_enabled else 0,
            minimum_requests=config.breaker_minimum_requests,
            engine_s=config.breaker_engine_ms / 1000 if config.v1_enabled else 0.0,
            probe_s=config.breaker_probe_ms / 1000,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """One moment of it. `recent` holds V2's last results, the newest last: "" for a good one, else what
    was bad. `reason` and `by` are those of the last transition."""

    state: State = State.CLOSED
    reason: str = ""
    by: str = ""
    recent: tuple[str, ...] = ()
    probing: bool = False
    next_probe_s: float = 0.0
    probes_good: int = 0
    probes_bad: int = 0

    def admit(self, rules: Rules, now_s: float) -> tuple["Breaker", Admission]:
        """Whether a request that the split orders to V2 may go there."""
        if self.state is State.CLOSED:
            return self, "v2"
        if not rules.probe_s or self.probing or now_s < self.next_probe_s:
            return self, "held"
        probing = replace(self, probing=True, next_probe_s=now_s + rules.probe_s)
        if self.state is State.HALF_OPEN:
            return probing, "probe"
        return replace(probing, state=State.HALF_OPEN, reason="a probe is due", by=AUTOMATIC), "probe"

    def judged(self, bad: str | None, rules: Rules, now_s: float) -> "Breaker":
        """A request that was admitted as `v2` has ended; `bad` is that of `what_was_bad`."""
        if self.state is not State.CLOSED or bad is None:
            return self
        recent = (*self.recent, bad)[-rules.window_requests :]
        after = replace(self, recent=recent)
        failures = [cause for cause in recent if cause]
        if not bad or not rules.failures or len(recent) < rules.minimum_requests:
            return after
        if len(failures) < rules.failures:
            return after
        counts = ", ".join(f"{failures.count(cause)} {cause}" for cause in sorted(set(failures)))
        reason = f"{len(failures)} of V2's last {len(recent)} requests were bad: {counts}"
        return after.opened(reason, AUTOMATIC, rules, now_s)

    def probed(self, bad: str | None, rules: Rules, now_s: float) -> "Breaker":
        """A request that was admitted as `probe` has ended; `bad` is that of `what_was_bad`."""
        if self.state is not State.HALF_OPEN:
            return replace(self, probing=False)
        if bad == "":
            return replace(self, probing=False, probes_good=self.probes_good + 1)
        return replace(
            self,
            state=State.OPEN,
            reason=f"a probe was bad: {bad or 'not accepted'}",
            by=AUTOMATIC,
            probing=False,
            probes_bad=self.probes_bad + 1,
            next_probe_s=now_s + rules.probe_s,
        )

    def silent(self, silent_s: float, rules: Rules, now_s: float) -> "Breaker":
        """The engine has not answered for `silent_s`."""
        if self.state is not State.CLOSED or not rules.engine_s or silent_s < rules.engine_s:
            return self
        return self.opened(f"the engine has not answered for {silent_s:.1f} s", AUTOMATIC, rules, now_s)

    def opened(self, reason: str, by: str, rules: Rules, now_s: float) -> "Breaker":
        """Open it, if it is not."""
        if self.state is not State.CLOSED:
            return self
        return replace(
            self,
            state=State.OPEN,
            reason=reason,
            by=by,
            probing=False,
            next_probe_s=now_s + rules.probe_s,
            probes_good=0,
            probes_bad=0,
        )

    def closed(self, reason: str, by: str) -> "Breaker":
        """Close it, if it is not; V2's results are counted anew."""
        if self.state is State.CLOSED:
            return self
        return Breaker(reason=reason, by=by)


def what_was_bad(result: V2Result, config: Config) -> str | None:
    """What the breaker holds against V2's result: "" for nothing, None if the result says nothing.

    An engine that is absent, stops, or refuses for now is not a bad request: how long that lasts is
    judged by `silent`. What the agents' own command does is not V2's fault.
    """
    if result.end in (V2End.NOT_ACCEPTED, V2End.OVERLOADED, V2End.HELD):
        return None
    if result.end is V2End.REFUSED:
        return "refused"
    if result.end is V2End.LOST:
        return "lost"
    coordination = result.coordination
    if result.end is V2End.REVOKED and coordination.never_started:
        return "out of time"
    if coordination.delivery_rate_pct < config.fallback_delivery_pct:
        return "delivery"
    if coordination.coordination_time_ms > config.fallback_time_ms:
        return "slow"
    return "unknown agents" if coordination.count(AgentState.UNKNOWN) else ""
