"""From the evidence that came to what is judged: each host read, checked and, if need be, refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cfn.judge.request import Request
from cfn.judge.verdict import Verdict
from cfn.judge.window import plan
from cfn.metrics.arm import Arm
from cfn.metrics.evidence import UNKNOWN_RELEASE, Evidence, SampleCell

# A line or two may be cut by a crash or a full disk; more hides what it held.
LOST_LINES_ALLOWED = 3
LOST_SHARE_ALLOWED = 0.01
# The collector counts requests by itself; the events of more than these must not be missing.
UNSEEN_EVENTS_ALLOWED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host. `evidence` is None when `verdict` is not PASS: it is then left out and says `reason`.

    `left_out` counts the requests of generations other than the ordered one, by generation; `v1` and
    `v2` hold those of the ordered one by bucket, oldest first.
    """

    name: str
    verdict: Verdict
    reason: str
    evidence: Evidence | None = None
    left_out: dict[int, int] = field(default_factory=dict)
    v1: dict[int, Arm] = field(default_factory=dict)
    v2: dict[int, Arm] = field(default_factory=dict)

    def arms(self, name: str, starts: range) -> list[tuple[int, Arm]]:
        """The arm ("v1" or "v2") of each bucket in `starts` that had requests, oldest first."""
        arms = self.v2 if name == "v2" else self.v1
        return [(start, arm) for start, arm in arms.items() if start in starts]

    def over_capacity(self, starts: range) -> int:
        """Requests outside the split."""
        cells = self.evidence.requests.items() if self.evidence else ()
        return sum(cell.over_capacity for (start, _), cell in cells if start in starts)

    def samples(self, starts: range) -> list[SampleCell]:
        """One cell for each bucket in `starts`; an empty one where the collector was silent."""
        sampled = self.evidence.sampled if self.evidence else {}
        return [sampled.get(start) or SampleCell() for start in starts]


def read_hosts(request: Request) -> list[Host]:
    """Every host of the request, in its order. Never raises for what a host sent."""
    return [_read_host(name, request) for name in request.hosts]


def _read_host(name: str, request: Request) -> Host:
    raw = request.evidence.get(name)
    if raw is None:
        return Host(name=name, verdict=Verdict.NO_DATA, reason=f"{name}: no evidence came from this host")
    if not isinstance(raw, dict) or "error" in raw:
        detail = raw.get("error") if isinstance(raw, dict) else "its evidence is not an object"
        return Host(name=name, verdict=Verdict.ERROR, reason=f"{name}: {detail}")
    try:
        evidence = Evidence.from_json(raw)
        verdict, reason = _check(evidence, request)
    except (ValueError, TypeError, OverflowError) as error:
        return Host(name=name, verdict=Verdict.ERROR, reason=f"{name}: its evidence is malformed: {error}")
    if verdict is not Verdict.PASS:
        return Host(name=name, verdict=verdict, reason=f"{name}: {reason}")
    left_out: dict[int, int] = {}
    for (_, generation), cell in evidence.requests.items():
        if evidence.generations[generation] != request.ordered:
            served = cell.v1.requests + cell.v2.requests
            left_out[generation] = left_out.get(generation, 0) + served
    return Host(
        name=name,
        verdict=Verdict.PASS,
        reason="",
        evidence=evidence,
        left_out=left_out,
        v1=_arms(evidence, "v1", left_out),
        v2=_arms(evidence, "v2", left_out),
    )


def _arms(evidence: Evidence, name: str, left_out: Mapping[int, int]) -> dict[int, Arm]:
    """The arm of each bucket that had requests, over all generations that are not left out."""
    merged: dict[int, Arm] = {}
    for (start, generation), cell in sorted(evidence.requests.items()):
        arm = cell.v2 if name == "v2" else cell.v1
        if arm.requests and generation not in left_out:
            merged.setdefault(start, Arm()).merge(arm)
    return merged


def _check(evidence: Evidence, request: Request) -> tuple[Verdict, str]:
    wanted = plan(request)
    if evidence.bucket_ms != wanted.bucket_ms:
        return (
            Verdict.ERROR,
            f"evidence in buckets of {evidence.bucket_ms} ms; {wanted.bucket_ms} ms were asked for",
        )
    if evidence.since_ms > wanted.since_ms or evidence.until_ms < wanted.until_ms:
        return Verdict.ERROR, "its evidence does not cover the window that was asked for"
    if evidence.arms.mismatches:
        example = f" ({evidence.arms.examples[0]})" if evidence.arms.examples else ""
        return Verdict.ERROR, (
            f"the split is not what was ordered: {evidence.arms.mismatches} of {evidence.arms.checked} "
            f"events differ when recomputed{example}"
        )
    if evidence.arms.checked != evidence.events.records:
        return (
            Verdict.ERROR,
            f"only {evidence.arms.checked} of {evidence.events.records} events were recomputed",
        )
    for name, source in (("events", evidence.events), ("samples", evidence.samples)):
        if source.lost > max(LOST_LINES_ALLOWED, LOST_SHARE_ALLOWED * (source.records + source.lost)):
            kinds = ", ".join(f"{count} {kind}" for kind, count in source.damaged.items() if count)
            return (
                Verdict.ERROR,
                f"{source.lost} lines of its {name} are damaged and may hide anything ({kinds})",
            )
    missing = _missing_events(evidence)
    if missing > UNSEEN_EVENTS_ALLOWED + LOST_SHARE_ALLOWED * evidence.events.records:
        return (
            Verdict.ERROR,
            f"its events lack at least {missing} requests that the collector saw end: cut or lost",
        )
    if request.since_ms >= evidence.until_ms:
        # The change is younger than the last whole bucket: what runs now cannot be in the evidence,
        # and no criterion has a bucket to look at.
        return Verdict.PASS, ""
    if evidence.latest_generation is None:
        return Verdict.NO_DATA, "its events name no configuration: the file is missing, empty or cut off"
    running = evidence.generations.get(evidence.latest_generation)
    if running != request.ordered:
        found = (
            "an unknown configuration" if running is None else f"{running.version} {running.traffic_pct:f} %"
        )
        ordered = f"{request.ordered.version} {request.ordered.traffic_pct:f} %"
        return Verdict.ERROR, f"the split is not what was ordered: it runs {found}, ordered is {ordered}"
    asked = {each for each in request.release.split(", ") if each}
    ran = evidence.releases - {UNKNOWN_RELEASE}
    if asked and ran and not asked & ran:
        return (
            Verdict.ERROR,
            f"it ran release {', '.join(sorted(ran))}; the question is about {request.release}",
        )
    return Verdict.PASS, ""


def _missing_events(evidence: Evidence) -> int:
    seen = sum(cell.requests_seen for cell in evidence.sampled.values())
    return seen - sum(cell.v1.requests + cell.v2.requests for cell in evidence.requests.values())
