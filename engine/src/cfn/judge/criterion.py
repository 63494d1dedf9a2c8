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

COMPARISONS = {"lt": "below", "le": "at most", "gt": "above", "ge": "at least"}
SCOPES = ("fleet", "worst_host")
PROOFS = ("none", "fail", "both")
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

    `proof` says whether the bound of cfn.judge.proof decides: `none`, for a FAIL before the end of the
    window (`fail`), or for PASS too (`both`). `needs` says what a dry-run criterion waits for.
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
    proof: str = "none"
    needs: str = ""

    @property
    def origin(self) -> Origin:
        """Where its figure comes from."""
        return MEASURES[self.metric].origin

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
        proof=checks.one_of(value.get("proof", "none"), "proof", PROOFS),
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
    if criterion.statistic in ("relative_range", "slope") and criterion.per.kind != "cumulative":
        raise ValueError(f"{criterion.statistic} compares buckets: per cumulative is allowed")
    if criterion.proof != "none":
        if MEASURES[criterion.metric].statistics != {"mean": "pct"} or criterion.per.kind != "cumulative":
            raise ValueError("proof is for the mean of a rate in pct, with per cumulative")
        if not 0 < criterion.threshold < 100:
            raise ValueError("proof needs a threshold between 0 and 100 pct: an exact 0 or 100 has no proof")
    if criterion.origin is Origin.LATER and not (criterion.dry_run and criterion.needs):
        raise ValueError(f"{criterion.metric} is not measured yet: dry_run true and needs are required")
    if criterion.needs and not criterion.dry_run:
        raise ValueError("needs is for a criterion with dry_run true")
