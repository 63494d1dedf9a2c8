"""What the judge is asked: criteria, evidence and circumstances, checked before anything is judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfn.errors import UsageError
from cfn.judge.criterion import Criterion, read_criterion
from cfn.judge.timescale import TimeScale
from cfn.ledger.canonical import sha256
from cfn.metrics import checks
from cfn.metrics.arm import Arm
from cfn.metrics.records import Ordered, read_config
from cfn.metrics.times import parse_ms

REQUEST_VERSION = 1
MAX_SKEW_MS = 60_000  # `since` is a host's clock, `now` the asker's; until then the traffic is settling

_REQUIRED = ("environment", "stage", "step", "asked_by", "now", "since", "ordered", "hosts", "criteria")
_OPTIONAL = (
    "v", "triggers", "evidence", "time_factor", "window_s", "release", "stage_table_sha256",
    "facts", "v1_history", "retrospective", "blind_limit_s",
)  # fmt: skip
DEFAULT_BLIND_LIMIT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What people recorded in the ledger: critical incidents that count against V2, by name, and each
    item of the stage with whether it is attested to hold (`cfn rollout facts`)."""

    critical_incidents: int
    incidents: tuple[str, ...]
    attested: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked request. Times of criteria are on `scale` already; `evidence` is still as it came,
    since a damaged host is a matter for the verdict and not for the caller."""

    environment: str
    stage: str
    step: str
    asked_by: str
    now_ms: int
    since_ms: int
    ordered: Ordered
    hosts: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    triggers: tuple[Criterion, ...]
    scale: TimeScale
    evidence: Mapping[str, object]
    release: str
    stage_table_sha256: str
    sha256: str
    facts: Facts | None = None
    v1_history: Arm | None = None
    retrospective: bool = False
    blind_limit_s: float = DEFAULT_BLIND_LIMIT_S

    @property
    def bucket_ms(self) -> int:
        """The bucket that all criteria share."""
        return round((*self.criteria, *self.triggers)[0].bucket_s * 1_000)


def read_request(value: object) -> Request:
    """The request in a JSON object. Raises UsageError saying what is wrong and what is allowed."""
    try:
        return _read(checks.mapping(value, "the request"))
    except ValueError as error:
        raise UsageError(f"gate request: {error}") from None


def _read(value: Mapping[str, Any]) -> Request:
    missing = [name for name in _REQUIRED if name not in value]
    unknown = sorted(set(value) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        raise ValueError(
            f"missing: {', '.join(missing) or 'nothing'}; unknown: {', '.join(unknown) or 'nothing'}"
        )
    if value.get("v", REQUEST_VERSION) != REQUEST_VERSION:
        raise ValueError(f"version {value['v']!r}; this judge reads {REQUEST_VERSION}")
    scale = TimeScale(checks.number(value.get("time_factor", 1), "time_factor", low=1, high=1e6))
    window_s = None
    if value.get("window_s") is not None:
        window_s = checks.number(value["window_s"], "window_s", low=1, high=1e8)
    criteria = _criteria(value["criteria"], "criteria", scale, window_s)
    triggers = _criteria(value.get("triggers", []), "triggers", scale, window_s)
    _check_together((*criteria, *triggers))
    hosts = tuple(checks.text(host, "host") for host in checks.sequence(value["hosts"], "hosts"))
    if not hosts or len(set(hosts)) != len(hosts):
        raise ValueError("hosts must name at least one host, and each once")
    evidence = checks.mapping(value.get("evidence", {}), "evidence")
    strangers = sorted(set(evidence) - set(hosts))
    if strangers:
        raise ValueError(f"evidence of {', '.join(strangers)}, which hosts does not name")
    now_ms = parse_ms(checks.text(value["now"], "now"))
    since_ms = parse_ms(checks.text(value["since"], "since"))
    if since_ms > now_ms + MAX_SKEW_MS:
        raise ValueError(f"since lies {(since_ms - now_ms) / 1_000:g} s after now: check the clocks")
    return Request(
        environment=checks.text(value["environment"], "environment"),
        stage=checks.text(value["stage"], "stage"),
        step=checks.text(value["step"], "step"),
        asked_by=checks.text(value["asked_by"], "asked_by"),
        now_ms=now_ms,
        since_ms=since_ms,
        ordered=read_config(checks.mapping(value["ordered"], "ordered")),
        hosts=hosts,
        criteria=criteria,
        triggers=triggers,
        scale=scale,
        evidence=evidence,
        release=checks.text(value.get("release", ""), "release"),
        stage_table_sha256=checks.text(value.get("stage_table_sha256", ""), "stage_table_sha256"),
        sha256=sha256(value),
        facts=_facts(value.get("facts")),
        v1_history=_history(value.get("v1_history")),
        retrospective=checks.boolean(value.get("retrospective", False), "retrospective"),
        blind_limit_s=scale.blind_limit_s(
            checks.number(value.get("blind_limit_s", DEFAULT_BLIND_LIMIT_S), "blind_limit_s", low=1)
        ),
    )


def _facts(value: object) -> Facts | None:
    if value is None:
        return None
    facts = checks.mapping(value, "facts")
    attested = checks.mapping(facts.get("attested"), "facts.attested")
    return Facts(
        critical_incidents=checks.whole(facts.get("critical_incidents"), "facts.critical_incidents"),
        incidents=tuple(
            checks.text(each, "incident") for each in checks.sequence(facts.get("incidents"), "incidents")
        ),
        attested={item: checks.boolean(holds, f"attested.{item}") for item, holds in attested.items()},
    )


def _history(value: object) -> Arm | None:
    return None if value is None else Arm.from_json(checks.mapping(value, "v1_history"))


def _criteria(value: object, name: str, scale: TimeScale, window_s: float | None) -> tuple[Criterion, ...]:
    each = checks.sequence(value, name)
    return tuple(scale.criterion(read_criterion(item, window_s=window_s)) for item in each)


def _check_together(criteria: tuple[Criterion, ...]) -> None:
    if not criteria:
        raise ValueError("there is nothing to judge: criteria and triggers are empty")
    names = [criterion.name for criterion in criteria]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"two criteria have the name {', '.join(doubled)}")
    if len({criterion.bucket_s for criterion in criteria}) > 1:
        raise ValueError("all criteria and triggers of a request must have the same bucket_s")
