"""The plan of a rollout as one object: what an environment is, where it stands, and every figure.

Playbooks make it from the inventory; the watch finds it in a file, since no playbook runs then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfn.errors import UsageError
from cfn.judge.timescale import TimeScale
from cfn.metrics import checks
from cfn.rollout.escalation import Figures, read_figures
from cfn.rollout.outcome import EPIC

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked plan. `stage` is the one in force; `table` is the stage table as the inventory has it."""

    environment: str
    kind: str
    stage: str
    time_factor: float
    table: Mapping[str, Any]
    table_sha256: str
    severities: Mapping[str, Any]
    attested_at_the_end: tuple[str, ...]
    hosts: tuple[str, ...]
    watch: Mapping[str, Any]

    @property
    def scale(self) -> TimeScale:
        """The time scale of the environment."""
        return TimeScale(self.time_factor)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages in order, without the end of all."""
        return tuple(name for name in self.table if name != EPIC)

    def figures(self, stage: str) -> Figures:
        """The limits of a stage's escalations. Raises UsageError."""
        return read_figures(self.judged(stage), self.severities, self.time_factor)

    def judged(self, stage: str) -> Mapping[str, Any]:
        """The figures of a stage. Raises UsageError for one that does not exist."""
        found = self.table.get(stage)
        if not isinstance(found, dict):
            raise UsageError(f"stage {stage!r} is not in the table; allowed: {', '.join(self.table)}")
        return found

    def window(self, stage: str) -> Mapping[str, Any]:
        """What a stage is judged by in an environment of this kind: window, looks, criteria."""
        found = self.judged(stage).get(self.kind)
        if not isinstance(found, dict):
            raise UsageError(f"stage {stage!r} is not judged in an environment of kind {self.kind}")
        return found


def read_plan(value: object) -> Plan:
    """The plan in a JSON object. Raises UsageError saying what is wrong."""
    try:
        plan = checks.mapping(value, "the plan")
        if plan.get("v") != PLAN_VERSION:
            raise ValueError(f"version {plan.get('v')!r}; this release reads {PLAN_VERSION}")
        return Plan(
            environment=checks.text(plan.get("environment"), "environment"),
            kind=checks.one_of(plan.get("kind"), "kind", ("staging", "production")),
            stage=checks.text(plan.get("stage"), "stage"),
            time_factor=checks.number(plan.get("time_factor"), "time_factor", low=1, high=1e6),
            table=checks.mapping(plan.get("table"), "table"),
            table_sha256=checks.text(plan.get("table_sha256"), "table_sha256"),
            severities=checks.mapping(plan.get("severities"), "severities"),
            attested_at_the_end=tuple(
                checks.text(each, "attested_at_the_end")
                for each in checks.sequence(plan.get("attested_at_the_end"), "attested_at_the_end")
            ),
            hosts=tuple(checks.text(each, "a host") for each in checks.sequence(plan.get("hosts"), "hosts")),
            watch=checks.mapping(plan.get("watch", {}), "watch"),
        )
    except ValueError as error:
        raise UsageError(f"plan: {error}") from None
