"""How the whole rollout ended: COMPLETE, INCOMPLETE (what is missing, what next) or PIVOT. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfn.metrics.times import parse_ms
from cfn.rollout.escalation import Figures, phase_escalations
from cfn.rollout.records import attestations, facts, is_look
from cfn.rollout.steps import setback

Record = Mapping[str, Any]

EPIC = "epic"

# What an unmet criterion asks for next, by what it is about; the first that fits its metric.
_NEXT = (
    ("critical_incidents", "take the traffic back one stage, close the incident, test again in staging"),
    ("active_agents", "lower the target of agents to what is stable, or extend stage 3"),
    ("restarts", "find why it crashed, test the fix in staging for 24 hours, enter stage 3 again"),
    ("coordination_time_ms", "extend stage 3 while you find what is slow; test the fix in staging"),
    ("delivery_rate_pct", "extend stage 3 while you find what is lost; test the fix in staging"),
    ("error_rate_pct", "extend stage 3 while you find what fails; test the fix in staging"),
)
_OTHERWISE = "extend stage 3 until it holds"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`outcome`, the criteria that are not met with why, what to do next, and of what it was decided."""

    outcome: str
    unmet: tuple[tuple[str, str], ...]
    next: tuple[str, ...]
    because: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For the ledger and the report."""
        return {
            "outcome": self.outcome,
            "unmet": [{"name": name, "why": why} for name, why in self.unmet],
            "next": list(self.next),
            "because": list(self.because),
        }


def outcome(
    records: Sequence[Record],
    stages: Sequence[str],
    attested_items: Sequence[str],
    figures: Mapping[str, Figures],
) -> Outcome:
    """The outcome as of the last record. `attested_items` must hold for the epic; `figures` by stage.

    PIVOT goes before everything: a plan that cannot work is not complete because a week went well.
    """
    pivots = [each for stage in stages for each in phase_escalations(records, [stage], figures[stage])]
    if pivots:
        return Outcome(
            "PIVOT",
            tuple((each.trigger, each.reason) for each in pivots),
            (
                "go back to V1 or to the last stage that passed",
                "change the architecture, or lower the number of agents, by what was learned",
                "begin again at stage 1, with more alerts where this one was found late",
            ),
            tuple(each.reason for each in pivots),
        )
    verdicts = [each for each in records if is_look(each) and each["stage"] == EPIC]
    unmet: list[tuple[str, str, str]] = []
    because = []
    if not verdicts:
        unmet.append(("verdict", "", "the gate has not judged the two weeks at 100 % yet"))
    else:
        last = verdicts[-1]
        verdict = last["data"]["verdict"]
        because.append(f"record {last['sequence']}: {verdict['verdict']} at {last['time']}")
        unmet += [
            (each["name"], each["metric"], each["reason"])
            for each in verdict["results"]
            if not each["dry_run"] and each["verdict"] != "PASS"
        ]
        if verdict["verdict"] != "PASS" and not unmet:
            unmet.append(("verdict", "", f"{verdict['verdict']}: {'; '.join(verdict['reasons'])}"))
        after = [each for each in records if setback(each) and each["sequence"] > last["sequence"]]
        if after:
            found = after[-1]
            why = f"{found['stage']} was taken back after it (record {found['sequence']})"
            unmet.append(("verdict", "", why))
        now = facts(records, EPIC, parse_ms(verdict["since"]))
        if now["critical_incidents"]:
            unmet.append(("no_critical_incident", "critical_incidents", ", ".join(now["incidents"])))
    attested = attestations(records, EPIC)
    for item in attested_items:
        record = attested.get(item)
        if record is None:
            unmet.append(
                (
                    item,
                    "",
                    f"nobody has attested it: ansible-playbook attest.yml -e stage=epic -e attest={item}",
                )
            )
        elif not record["data"]["holds"]:
            unmet.append((item, "", f"{record['data']['by']}: {record['data']['note']}"))
        else:
            because.append(f"record {record['sequence']}: {item}, attested by {record['data']['by']}")
    if not unmet:
        ends = (
            "V1 stays archived for an emergency only",
            "write the final report: ansible-playbook report.yml",
        )
        return Outcome("COMPLETE", (), ends, tuple(because))
    steps = dict.fromkeys(_next_step(name, metric) for name, metric, _ in unmet)
    return Outcome("INCOMPLETE", tuple((name, why) for name, _, why in unmet), tuple(steps), tuple(because))


def _next_step(name: str, metric: str) -> str:
    if not metric:
        return (
            "ask the gate when its window is full" if name == "verdict" else f"see to {name}, and attest it"
        )
    return next((words for known, words in _NEXT if known == metric), _OTHERWISE)
