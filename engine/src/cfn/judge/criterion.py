"""A criterion: one limit that must hold, with everything needed to judge it.

The same shape serves the criteria of a window and the guardrails (rollback triggers): both say what
must hold, so `compare: le, threshold: 15000` as a trigger rolls back above 15,000. What cannot be
judged as written is refused here, before anything is judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cfn.errors import UsageError
from cfn.judge.measures import MEASURES, Origin
from cfn.metrics import checks
from cfn.metrics.histogram import SMALLEST

COMPARISONS = {"lt": "below", "le": "at most", "gt": "above", "ge": "at least"}
SCOPES = ("fleet", "worst_host")
DEFAULT_BUCKET_S = 300.0
DEFAULT_SETTLE_S = 300.0
DEFAULT_COVERAGE = 0.9


@dataclass(frozen=True, slots=True)
class Per:
    """How buckets add up: `cumulative` (one figure over the window), or broken when `n` of `m`
    successive buckets that have evidence are (`consecutive` is n of n)."""

    kind: str = "cumulative"
    n: int = 1
    m: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A checked criterion. Times in seconds, before the time scale is applied.

    `proved` says that both FAIL and PASS need the bound of cfn.judge.proof; what lies between is held.
    `item` is what an attestation is of. `floor`, of a slope, is the level in the metric's own unit below
    which growth does not count: what is next to nothing doubles and is next to nothing. `needs` says what
    a dry-run criterion waits for.
    """

    name: str
    metric: str
    statistic: str
    compare: str
    threshold: float
    unit: str
    window_s: float
    min_samples: int
    coverage: float = DEFAULT_COVERAGE
    scope: str = "fleet"
    bucket_s: float = DEFAULT_BUCKET_S
    settle_s: float = DEFAULT_SETTLE_S
    per: Per = Per()
    dry_run: bool = False
    arm: str = "v2"
    proved: bool = False
    item: str = ""
    floor: float = 0.0
    needs: str = ""

    @property
    def origin(self) -> Origin:
        """Where its figure comes from."""
        return MEASURES[self.metric].origin

    @property
    def quantile(self) -> float | None:
        """0.95 of the statistic p95; None if it is no quantile of the events."""
        if self.origin is not Origin.EVENTS or not self.statistic.startswith("p"):
            return None
        return int(self.statistic[1:]) / 100

    @property
    def grows(self) -> bool:
        """Whether it looks at everything since the traffic came, and not only at its window's length:
        evidence that may be looked at again and again must not forget where it began."""
        return self.proved or self.origin is Origin.COMPARISON

    def holds(self, value: float) -> bool:
        """Whether a finite value keeps the limit."""
        if self.compare == "lt":
            return value < self.threshold
        if self.compare == "le":
            return value <= self.threshold
        if self.compare == "gt":
            return value > self.threshold
        return value >= self.threshold

    @property
    def limit(self) -> str:
        """The limit in words: `below 5000 ms`."""
        return f"{COMPARISONS[self.compare]} {self.threshold:g} {self.unit}"


_FIELDS = frozenset(field.name for field in fields(Criterion))


def read_criterion(value: object, *, window_s: float | None = None) -> Criterion:
    """The criterion in a JSON object; `window_s` is the stage's window, if the criterion names none.

    Raises UsageError naming the criterion, the field, what was found and what is allowed.
    """
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise UsageError(f"a criterion must be an object with a name; found {value!r:.200}")
    try:
        return _read(value, window_s)
    except ValueError as error:
        raise UsageError(f"criterion {value['name']!r}: {error}") from None


def _read(value: Mapping[str, Any], window_s: float | None) -> Criterion:
    unknown = sorted(set(value) - _FIELDS)
    if unknown:
        raise ValueError(f"unknown field {', '.join(unknown)}; known: {', '.join(sorted(_FIELDS))}")
    metric = checks.one_of(value.get("metric"), "metric", tuple(MEASURES))
    statistics = MEASURES[metric].statistics
    statistic = checks.one_of(value.get("statistic"), f"statistic of {metric}", tuple(statistics))
    criterion = Criterion(
        name=value["name"],
        metric=metric,
        statistic=statistic,
        compare=checks.one_of(value.get("compare"), "compare", tuple(COMPARISONS)),
        threshold=checks.number(value.get("threshold"), "threshold", low=-1e15),
        unit=checks.one_of(value.get("unit"), f"unit of {metric} {statistic}", (statistics[statistic],)),
        window_s=checks.number(value.get("window_s", window_s), "window_s", low=1, high=1e8),
        min_samples=checks.whole(value.get("min_samples"), "min_samples", low=1),
        coverage=checks.number(value.get("coverage", DEFAULT_COVERAGE), "coverage", low=0.5, high=1),
        scope=checks.one_of(value.get("scope", "fleet"), "scope", SCOPES),
        bucket_s=checks.number(value.get("bucket_s", DEFAULT_BUCKET_S), "bucket_s", low=1, high=86_400),
        settle_s=checks.number(value.get("settle_s", DEFAULT_SETTLE_S), "settle_s", high=86_400),
        per=_read_per(value.get("per", {"kind": "cumulative"})),
        dry_run=checks.boolean(value.get("dry_run", False), "dry_run"),
        arm=checks.one_of(value.get("arm", "v2"), "arm", ("v1", "v2")),
        proved=checks.boolean(value.get("proved", False), "proved"),
        item=checks.text(value.get("item", ""), "item"),
        floor=checks.number(value.get("floor", 0), "floor"),
        needs=checks.text(value.get("needs", ""), "needs"),
    )
    _check_together(criterion)
    return criterion


def _read_per(value: object) -> Per:
    per = checks.mapping(value, "per")
    kind = checks.one_of(per.get("kind"), "per.kind", ("cumulative", "consecutive", "n_of_m"))
    allowed = {"cumulative": {"kind"}, "consecutive": {"kind", "n"}, "n_of_m": {"kind", "n", "m"}}[kind]
    if set(per) != allowed:
        raise ValueError(f"per of kind {kind} has exactly the fields {', '.join(sorted(allowed))}")
    if kind == "cumulative":
        return Per()
    n = checks.whole(per["n"], "per.n", low=1, high=10_000)
    return Per(kind=kind, n=n, m=n if kind == "consecutive" else checks.whole(per["m"], "per.m", low=n))


def _check_together(criterion: Criterion) -> None:
    if criterion.window_s < criterion.bucket_s:
        raise ValueError(
            f"window_s {criterion.window_s:g} is shorter than bucket_s {criterion.bucket_s:g}: "
            "a window holds at least one bucket"
        )
    if criterion.origin is Origin.SAMPLES and criterion.scope != "worst_host":
        raise ValueError(f"{criterion.metric} belongs to a host: scope worst_host is allowed")
    if criterion.origin in (Origin.LEDGER, Origin.COMPARISON) and criterion.scope != "fleet":
        raise ValueError(f"{criterion.metric} is of the whole fleet: scope fleet is allowed")
    if criterion.per.kind != "cumulative" and (
        criterion.statistic in ("relative_range", "slope")
        or criterion.origin in (Origin.LEDGER, Origin.COMPARISON)
    ):
        raise ValueError(
            f"{criterion.metric} {criterion.statistic} takes a window: per cumulative is allowed"
        )
    if criterion.origin is Origin.COMPARISON and (
        criterion.arm != "v2" or criterion.compare != "le" or criterion.threshold < 1
    ):
        raise ValueError(f"{criterion.metric} compares V2 with V1: le and a margin of 1 or more is allowed")
    if criterion.proved:
        _check_proved(criterion)
    if (criterion.metric == "attested") != bool(criterion.item):
        raise ValueError("item names what is attested: metric attested has one, and no other metric")
    if criterion.floor and (criterion.statistic != "slope" or criterion.compare not in ("lt", "le")):
        raise ValueError("floor is the level from which growth counts: statistic slope with lt or le has one")
    if criterion.needs and not criterion.dry_run:
        raise ValueError("needs is for a criterion with dry_run true")


def _check_proved(criterion: Criterion) -> None:
    rate = MEASURES[criterion.metric].statistics == {"mean": "pct"}
    if criterion.per.kind != "cumulative" or criterion.scope != "fleet":
        raise ValueError("proved is for the whole fleet and window: scope fleet and per cumulative")
    if not rate and criterion.quantile is None:
        raise ValueError("proved is for the mean of a rate in pct, or for a quantile of a time")
    if rate and not 0 < criterion.threshold < 100:
        raise ValueError("proved needs a threshold between 0 and 100 pct: an exact 0 or 100 has no proof")
    if criterion.quantile is not None and (
        criterion.compare not in ("lt", "le") or criterion.threshold < SMALLEST
    ):
        raise ValueError("a quantile is proved to stay below a threshold above 0: lt and le are allowed")
