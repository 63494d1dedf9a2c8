"""What records that decide something must hold, and what those of people come to.

Checked before they are appended, so that whoever reads them later need not doubt them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cfn.errors import IdError, UsageError
from cfn.ids import check_id
from cfn.judge.verdict import Verdict
from cfn.metrics import checks
from cfn.metrics.times import parse_ms

Record = Mapping[str, Any]

SEVERITIES = ("P0", "P1", "P2", "P3")
CRITICAL = "P0"
ATTRIBUTIONS = ("v1", "v2", "neither", "unknown")
MAX_TEXT_CHARS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """The newest state of one incident. `stage` is that of its first record."""

    incident: str
    stage: str
    severity: str
    attributed_to: str
    state: str
    text: str
    started: str

    @property
    def critical(self) -> bool:
        """Whether gates count it."""
        return self.severity == CRITICAL

    @property
    def counts_against_v2(self) -> bool:
        """Whether it is V2's. One that nobody has attributed yet is, until somebody does."""
        return self.attributed_to in ("v2", "unknown")


def is_look(record: Record) -> bool:
    """Whether a record is a verdict on what runs; one on a past window (retrospective) decides nothing."""
    return record["kind"] == "verdict" and not record["data"]["verdict"].get("retrospective", False)


def check_data(kind: str, data: Mapping[str, Any]) -> None:
    """Hold the data of a record that decides something against what its kind must hold; others pass.

    Raises UsageError naming the field, what was found and what is allowed.
    """
    check = _CHECKS.get(kind)
    if check is None:
        return
    try:
        check(data)
    except (ValueError, IdError) as error:
        raise UsageError(f"a record of kind {kind}: {error}") from None


def _words(data: Mapping[str, Any], *names: str) -> None:
    for name in names:
        value = checks.text(data.get(name), name)
        if not value.strip() or len(value) > MAX_TEXT_CHARS:
            raise ValueError(f"{name} must be a text of 1 to {MAX_TEXT_CHARS} characters")


def _attested(data: Mapping[str, Any]) -> None:
    check_id("item", checks.text(data.get("item"), "item"))
    checks.boolean(data.get("holds"), "holds")
    _words(data, "by")
    checks.text(data.get("note"), "note")


def _incident(data: Mapping[str, Any]) -> None:
    check_id("incident", checks.text(data.get("incident"), "incident"))
    checks.one_of(data.get("severity"), "severity", SEVERITIES)
    checks.one_of(data.get("attributed_to"), "attributed_to", ATTRIBUTIONS)
    checks.one_of(data.get("state"), "state", ("open", "closed"))
    parse_ms(checks.text(data.get("started"), "started"))
    _words(data, "text", "by")


def _override(data: Mapping[str, Any]) -> None:
    _words(data, "override_by", "override_reason")
    if not checks.sequence(data.get("overridden"), "overridden"):
        raise ValueError("overridden names nothing: there is nothing to override")


def _learned(data: Mapping[str, Any]) -> None:
    _words(data, "text", "by")


def _holding(data: Mapping[str, Any]) -> None:
    checks.one_of(data.get("state"), "state", ("held", "resumed"))
    _words(data, "by", "reason")


def _verdict(data: Mapping[str, Any]) -> None:
    checks.mapping(data.get("request"), "request")
    verdict = checks.mapping(data.get("verdict"), "verdict")
    checks.one_of(verdict.get("verdict"), "verdict", tuple(Verdict))
    for name in ("step", "release", "stage_table_sha256", "since"):
        checks.text(verdict.get(name), name)
    checks.sequence(verdict.get("results"), "results")
    checks.mapping(verdict.get("ordered"), "ordered")
    checks.number(checks.mapping(verdict.get("time_scale"), "time_scale").get("factor"), "factor", low=1)


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "verdict": _verdict,
    "attested": _attested,
    "incident": _incident,
    "override": _override,
    "learned": _learned,
    "holding": _holding,
}


def incidents(records: Iterable[Record]) -> list[Incident]:
    """Every incident in its newest state, in the order in which they began to be recorded."""
    found: dict[str, Incident] = {}
    for record in records:
        if record["kind"] != "incident":
            continue
        data = record["data"]
        first = found.get(data["incident"])
        found[data["incident"]] = Incident(
            incident=data["incident"],
            stage=first.stage if first else record["stage"],
            severity=data["severity"],
            attributed_to=data["attributed_to"],
            state=data["state"],
            text=data["text"],
            started=data["started"],
        )
    return list(found.values())


def attestations(records: Iterable[Record], stage: str) -> dict[str, Record]:
    """The newest attestation of each item, of one stage."""
    return {
        record["data"]["item"]: record
        for record in records
        if record["kind"] == "attested" and record["stage"] == stage
    }


def facts(records: Iterable[Record], stage: str, since_ms: int) -> dict[str, Any]:
    """What gates read from the ledger: `critical_incidents` that count against V2 and are open, or
    began at `since_ms` or later, in any stage; and `attested`, each item of `stage` with whether its
    newest attestation says that it holds."""
    records = list(records)
    critical = [
        each
        for each in incidents(records)
        if each.critical
        and each.counts_against_v2
        and (each.state == "open" or parse_ms(each.started) >= since_ms)
    ]
    return {
        "critical_incidents": len(critical),
        "incidents": [each.incident for each in critical],
        "attested": {item: record["data"]["holds"] for item, record in attestations(records, stage).items()},
    }
