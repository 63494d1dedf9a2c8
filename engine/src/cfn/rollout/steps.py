"""The order of steps: what a step needs before it may start. Pure, over the ledger's records.

The rules are docs/reference/order.md. A step is a share of traffic in a stage; the table names the
steps of each stage, and what comes before a step is the one before it in its stage, or the last one of
the stage before. What cannot be proved is a reason to refuse.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cfn.errors import UsageError
from cfn.metrics import checks
from cfn.metrics.times import parse_ms
from cfn.rollout.holds import RESUMED, holds
from cfn.rollout.records import attestations, facts, is_look

Record = Mapping[str, Any]

MEASURED = ("rollback_tested",)  # rehearse.yml attests it, of what it measured
DECOMMISSION = "decommission"  # the step after the last: it moves no traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the table, in order: its stage, its name, and its share of traffic in percent."""

    stage: str
    name: str
    traffic_pct: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What an environment asks for. Ages in seconds of real time; `time_factor` divides only how long
    staging's evidence must reach after a setback, since a shortened window cannot be longer."""

    staging_verdict: bool
    previous_step: bool
    verdict_max_age_s: float
    retry_staging_s: float
    attestation_max_age_s: float
    attestations: tuple[str, ...]
    time_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The step that is to start. `current` is what each host runs: version, traffic and release; `hosts`
    the same with the host's name and its breaker, from callers that know them."""

    environment: str
    kind: str
    stage: str
    traffic_pct: float
    release: str
    stage_table_sha256: str
    now_ms: int
    steps: tuple[Step, ...]
    rules: Rules
    current: tuple[tuple[str, float, str], ...] = ()
    hosts: tuple[Mapping[str, Any], ...] = ()
    override_by: str = ""
    override_reason: str = ""
    resume_by: str = ""
    resume_reason: str = ""


@dataclass(slots=True)
class Decision:
    """Whether the step may start: `reasons` against it, what `holds` it, and `because` of which records it
    may. `override` and `resumed` are the data of records to append, if somebody answers for what is
    missing, or lets what is held go on."""

    reasons: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    because: list[str] = field(default_factory=list)
    override: dict[str, Any] | None = None
    resumed: dict[str, Any] | None = None

    @property
    def allowed(self) -> bool:
        """No reason against it, or overridden; and not held, or resumed."""
        answered = not self.reasons or self.override is not None
        return answered and (not self.holds or self.resumed is not None)

    def as_json(self) -> dict[str, Any]:
        """The object that `cfn rollout may-start --json` prints."""
        return {
            "decided": True,
            "allowed": self.allowed,
            "reasons": self.reasons,
            "holds": self.holds,
            "because": self.because,
            "override": self.override,
            "resumed": self.resumed,
        }


def read_asked(value: Mapping[str, Any]) -> Asked:
    """The question in a JSON object. Raises UsageError saying what is wrong."""
    try:
        rules = checks.mapping(value.get("rules"), "rules")
        return Asked(
            environment=checks.text(value.get("environment"), "environment"),
            kind=checks.one_of(value.get("kind"), "kind", ("staging", "production")),
            stage=checks.text(value.get("stage"), "stage"),
            traffic_pct=checks.number(value.get("traffic_pct"), "traffic_pct", high=100),
            release=checks.text(value.get("release"), "release"),
            stage_table_sha256=checks.text(value.get("stage_table_sha256"), "stage_table_sha256"),
            now_ms=parse_ms(checks.text(value.get("now"), "now")),
            steps=tuple(_read_step(each) for each in checks.sequence(value.get("steps"), "steps")),
            rules=Rules(
                staging_verdict=checks.boolean(rules.get("staging_verdict"), "staging_verdict"),
                previous_step=checks.boolean(rules.get("previous_step"), "previous_step"),
                verdict_max_age_s=checks.number(rules.get("verdict_max_age_s"), "verdict_max_age_s"),
                retry_staging_s=checks.number(rules.get("retry_staging_s"), "retry_staging_s"),
                attestation_max_age_s=checks.number(
                    rules.get("attestation_max_age_s"), "attestation_max_age_s"
                ),
                attestations=tuple(
                    checks.text(each, "attestation")
                    for each in checks.sequence(rules.get("attestations"), "attestations")
                ),
                time_factor=checks.number(rules.get("time_factor"), "time_factor", low=1),
            ),
            current=tuple(
                _read_current(each) for each in checks.sequence(value.get("current", []), "current")
            ),
            hosts=tuple(
                checks.mapping(each, "a host of current")
                for each in checks.sequence(value.get("current", []), "current")
                if "host" in checks.mapping(each, "a host of current")
            ),
            override_by=checks.text(value.get("override_by", ""), "override_by").strip(),
            override_reason=checks.text(value.get("override_reason", ""), "override_reason").strip(),
            resume_by=checks.text(value.get("resume_by", ""), "resume_by").strip(),
            resume_reason=checks.text(value.get("resume_reason", ""), "resume_reason").strip(),
        )
    except ValueError as error:
        raise UsageError(f"the step that is asked for: {error}") from None


def _read_step(value: object) -> Step:
    step = checks.mapping(value, "a step")
    return Step(
        stage=checks.text(step.get("stage"), "stage"),
        name=checks.text(step.get("name"), "name"),
        traffic_pct=checks.number(step.get("traffic_pct"), "traffic_pct", high=100),
    )


def _read_current(value: object) -> tuple[str, float, str]:
    host = checks.mapping(value, "a host of current")
    return (
        checks.text(host.get("version"), "version"),
        checks.number(host.get("traffic_pct"), "traffic_pct", high=100),
        checks.text(host.get("release"), "release"),
    )


def may_start(records: Iterable[Record], asked: Asked, staging: Record | None) -> Decision:
    """Decide. `staging` is the record of staging's verdict, its signature checked by the caller.

    Raises UsageError for a stage without steps, or half an override.
    """
    if bool(asked.override_by) != bool(asked.override_reason):
        raise UsageError("an override needs both override_by and override_reason")
    if bool(asked.resume_by) != bool(asked.resume_reason):
        raise UsageError("to resume needs both resume_by and resume_reason")
    records = list(records)
    decision = Decision(holds=holds(records, asked.hosts))
    if decision.holds and asked.resume_by:
        decision.resumed = {
            "state": RESUMED,
            "by": asked.resume_by,
            "reason": asked.resume_reason,
            "held": list(decision.holds),
        }
    if _changes_nothing(asked):
        decision.because.append("every host runs this release already, with as much traffic on V2 or more")
        return decision
    before = _previous_step(asked)
    setbacks = [each for each in records if setback(each)]
    if asked.rules.previous_step and before is not None and asked.kind == "production":
        _need_previous(decision, records, asked, before, setbacks)
    if asked.rules.staging_verdict and asked.kind == "production" and asked.stage != DECOMMISSION:
        _need_staging(decision, asked, staging, setbacks)
    _need_attestations(decision, records, asked, staging)
    _need_no_incident(decision, records, asked)
    if decision.reasons and asked.override_by:
        decision.override = {
            "override_by": asked.override_by,
            "override_reason": asked.override_reason,
            "overridden": list(decision.reasons),
            "traffic_pct": asked.traffic_pct,
            "release": asked.release,
        }
    return decision


def _changes_nothing(asked: Asked) -> bool:
    return (
        asked.stage != DECOMMISSION
        and bool(asked.current)
        and all(
            version == "v2" and traffic >= asked.traffic_pct and release == asked.release
            for version, traffic, release in asked.current
        )
    )


def _previous_step(asked: Asked) -> Step | None:
    """The step before the one that the share of traffic belongs to; None for the first of all."""
    own = [
        number
        for number, step in enumerate(asked.steps)
        if step.stage == asked.stage and asked.traffic_pct <= step.traffic_pct
    ]
    if not own:
        raise UsageError(f"{asked.stage} has no step that reaches {asked.traffic_pct:g} %")
    return asked.steps[own[0] - 1] if own[0] else None


def setback(record: Record) -> bool:
    """Whether a record voids what its stage has reached: a FAIL, a rollback, or V1 restored and in
    charge again."""
    kind: str = record["kind"]
    if kind == "restored":
        return bool(record["data"].get("traffic") == "v1")
    return kind == "rolled_back" or (is_look(record) and str(record["data"]["verdict"]["verdict"]) == "FAIL")


def _what(record: Record) -> str:
    word = {"rolled_back": "rollback", "restored": "restoration of V1"}.get(record["kind"], "FAIL")
    return f"the {word} of {record['stage']} at {record['time']} (record {record['sequence']})"


def _need_previous(
    decision: Decision,
    records: Sequence[Record],
    asked: Asked,
    before: Step,
    setbacks: Sequence[Record],
) -> None:
    """A fresh PASS of the step before, for the same release and table, after every setback of its own
    stage and of the stage that is to start; before the end of V1 of any stage. What came after is told by
    the numbers of the records: a clock may have been set back in between."""
    name = f"{before.stage} at {before.name} %"
    counted = [
        each
        for each in setbacks
        if asked.stage == DECOMMISSION or each["stage"] in (before.stage, asked.stage)
    ]
    verdicts = [
        record["data"]["verdict"] | {"sequence": record["sequence"], "time": record["time"]}
        for record in records
        if is_look(record)
        and record["stage"] == before.stage
        and record["data"]["verdict"]["step"] == before.name
        and record["environment"] == asked.environment
    ]
    passes = [each for each in verdicts if each["verdict"] == "PASS"]
    if not passes:
        last = f"; its last verdict is {_in_words(verdicts[-1])}" if verdicts else ""
        decision.reasons.append(f"{name} has no PASS in this ledger{last}")
        return
    last_pass = passes[-1]
    cited = f"the PASS of {name} (record {last_pass['sequence']})"
    problems = _problems(last_pass, asked, before.traffic_pct)
    if counted and counted[-1]["sequence"] > last_pass["sequence"]:
        problems.append(f"it is voided by {_what(counted[-1])}")
    decision.reasons += [f"{cited} does not count: {problem}" for problem in problems]
    if not problems:
        decision.because.append(cited)


def _in_words(verdict: Mapping[str, Any]) -> str:
    """A verdict, since when it has evidence, when there is enough of it, and its first reason."""
    reasons = verdict.get("reasons") or [""]
    more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    again = verdict.get("ask_again_at")
    full = f"; its window is full at {again}" if again else ""
    when = f"{verdict['time']}, of evidence since {verdict['since']}{full}"
    return f"{verdict['verdict']} ({when}): {reasons[0]}{more}"


def _need_staging(
    decision: Decision,
    asked: Asked,
    staging: Record | None,
    setbacks: Sequence[Record],
) -> None:
    """Staging's PASS of the same stage; after a setback of this stage or a later one here, with as
    much evidence from after it as the rules ask for."""
    if staging is None:
        decision.reasons.append(
            f"staging's PASS of {asked.stage} is missing: export it there (ansible-playbook "
            f"-i inventories/staging export.yml -e stage={asked.stage}) and give it as "
            "-e staging_verdict=FILE"
        )
        return
    verdict = staging["data"]["verdict"] | {"time": staging["time"]}
    cited = f"staging's {verdict['verdict']} of {staging['stage']} ({staging['time']})"
    problems = []
    if verdict["verdict"] != "PASS":
        problems.append("it is no PASS")
    if not is_look(staging):
        problems.append("it judges a past window")
    if verdict["step"] != "staging" or staging["stage"] != asked.stage:
        problems.append(
            f"it judges {staging['stage']} at step {verdict['step']}, not {asked.stage} in staging"
        )
    problems += _problems(verdict, asked, 0.0)
    order = list(dict.fromkeys(step.stage for step in asked.steps))
    later = set(order[order.index(asked.stage) :])
    setback_ms, what = max(
        ((parse_ms(each["time"]), _what(each)) for each in setbacks if each["stage"] in later),
        default=(0, ""),
    )
    needed_ms = round(asked.rules.retry_staging_s * 1_000 / asked.rules.time_factor)
    if what and _evidence_after(verdict, setback_ms) < needed_ms:
        problems.append(
            f"after {what} it needs {needed_ms / 3_600_000:g} hours of evidence from after that, and has "
            f"{_evidence_after(verdict, setback_ms) / 3_600_000:.1f}"
        )
    decision.reasons += [f"{cited} does not count: {problem}" for problem in problems]
    if not problems:
        decision.because.append(cited)


def _problems(verdict: Mapping[str, Any], asked: Asked, traffic_pct: float) -> list[str]:
    """What keeps a PASS from being one for this step: age, release, table, traffic, time scale."""
    problems = []
    age_s = (asked.now_ms - parse_ms(verdict["time"])) / 1_000
    if not 0 <= age_s + 60 <= asked.rules.verdict_max_age_s + 60:
        problems.append(
            f"it is {age_s / 3_600:.1f} hours old; at most {asked.rules.verdict_max_age_s / 3_600:g} count"
        )
    if verdict["release"] != asked.release:
        problems.append(f"it judges release {verdict['release']}, not {asked.release}")
    if verdict["stage_table_sha256"] != asked.stage_table_sha256:
        problems.append("it judges by another stage table than the one in force")
    if float(verdict["ordered"]["traffic_pct"]) < traffic_pct:
        problems.append(f"it judges {verdict['ordered']['traffic_pct']} % of traffic, not {traffic_pct:g} %")
    if verdict["time_scale"]["factor"] > asked.rules.time_factor:
        problems.append(f"it was {verdict['time_scale']['note']}")
    return problems


def _evidence_after(verdict: Mapping[str, Any], after_ms: int) -> int:
    """How much of the verdict's window, in milliseconds, lies after a time: the least of any criterion
    that counts."""
    spans = [
        max(0, parse_ms(each["window"]["to"]) - max(after_ms, parse_ms(each["window"]["from"])))
        for each in verdict["results"]
        if not each["dry_run"] and each["layer"] == "criterion"
    ]
    return min(spans, default=0)


def _need_attestations(
    decision: Decision, records: Sequence[Record], asked: Asked, staging: Record | None
) -> None:
    """Each item by somebody's word in this ledger; what was measured in staging by its signed verdict,
    whose age is held elsewhere."""
    attested = attestations(records, asked.stage)
    for item in asked.rules.attestations:
        record = attested.get(item)
        if record is None and item in MEASURED and _attested_there(staging, asked.stage, item):
            decision.because.append(f"{item}, measured in staging")
            continue
        if record is None and item in MEASURED:
            decision.reasons.append(
                f"{item} is not proved for {asked.stage}: walk the way back in staging before its verdict "
                f"(ansible-playbook -i inventories/staging rehearse.yml -e stage={asked.stage}), or attest it"
            )
            continue
        if record is None:
            decision.reasons.append(
                f"nobody has attested {item} for {asked.stage}: ansible-playbook attest.yml "
                f"-e stage={asked.stage} -e attest={item} -e by=NAME"
            )
            continue
        cited = f"{item}, attested by {record['data']['by']} at {record['time']}"
        age_s = (asked.now_ms - parse_ms(record["time"])) / 1_000
        if not record["data"]["holds"]:
            decision.reasons.append(f"{cited}, does not hold: {record['data']['note']}")
        elif age_s > asked.rules.attestation_max_age_s:
            limit_s = asked.rules.attestation_max_age_s
            decision.reasons.append(f"{cited}, is older than {limit_s / 86_400:g} days: attest it again")
        else:
            decision.because.append(cited)


def _attested_there(staging: Record | None, stage: str, item: str) -> bool:
    """Whether staging's verdict of this stage was reached while the item was attested to hold there."""
    if staging is None or staging["stage"] != stage:
        return False
    facts_there = staging["data"].get("request", {}).get("facts") or {}
    return facts_there.get("attested", {}).get(item) is True


def _need_no_incident(decision: Decision, records: Sequence[Record], asked: Asked) -> None:
    now = facts(records, asked.stage, asked.now_ms)
    if now["critical_incidents"]:
        names = ", ".join(now["incidents"])
        decision.reasons.append(f"a critical incident of V2 is open: {names}")


def overrides_in_force(records: Iterable[Record], stage: str) -> list[Record]:
    """The overrides of a stage since it was last entered: each shows until the stage ends."""
    found: list[Record] = []
    for record in records:
        if record["stage"] != stage:
            continue
        if record["kind"] == "rolled_back":
            found = []
        elif record["kind"] == "override":
            found.append(record)
    return found
