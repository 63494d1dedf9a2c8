"""A request's outcome as the conductor knows it: its teams' outcomes put together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cfn.coordination import AgentResult, AgentState, Hybrid, Tally, TeamPart, as_head
from cfn.engine.placement import coordinator_agent
from cfn.engine.request_log import Request, TeamPlan
from cfn.engine.teams import NO_HOST, TeamOutcome, results_json


@dataclass(slots=True, kw_only=True)
class TeamState:
    """A team of a running request: who has it under which epoch, when a hub first had it (monotonic
    seconds, 0: none yet), and how it ended."""

    plan: TeamPlan
    host: int = NO_HOST
    epoch: int = 0
    begun_s: float = 0.0
    final: TeamOutcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The states as of `now_s` (monotonic). `snapshots` are of teams that have not ended, by name."""

    request: Request
    swarm_id: str
    teams: list[TeamState]
    now_s: float
    given_up: str = ""
    snapshots: Mapping[str, TeamOutcome] = field(default_factory=dict)

    @property
    def tally(self) -> Tally:
        """All agents by state, coordinators too."""
        tally = Tally(str(result.state) for result in self._coordinators())
        for team in self.teams:
            known = self._known(team)
            tally.update(Tally({self._unheard(team): team.plan.size}) if known is None else known.tally)
        return tally

    @property
    def coordination_time_ms(self) -> float:
        """To the last acknowledgement, to the deadline, or to now while some are missing."""
        return max(0.0, self._acknowledged_s(self.teams) - self.request.accepted_at_s) * 1000

    @property
    def total_time_ms(self) -> float:
        """To the last end, or to now while some run."""
        finals = [team.final for team in self.teams if team.final is not None]
        ended_s = self.now_s
        if len(finals) == len(self.teams):
            ended_s = max((final.last_end_s for final in finals), default=0.0) or self.now_s
        return max(0.0, ended_s - self.request.accepted_at_s) * 1000

    def head(self) -> dict[str, object]:
        """All but the agents' own results."""
        return as_head(
            self.request.task_id,
            self.swarm_id,
            self.tally,
            coordination_time_ms=self.coordination_time_ms,
            total_time_ms=self.total_time_ms,
            hybrid=self._hybrid() if any(team.plan.shard for team in self.teams) else None,
        )

    def as_json(self) -> bytes:
        """What sockets, HTTP and the journal carry."""
        parts = [results_json(self._coordinators())]
        for team in self.teams:
            known = self._known(team)
            if known is not None:
                parts.append(known.results)
            else:
                state = AgentState(self._unheard(team))
                parts.append(results_json([AgentResult(agent=a, state=state) for a in team.plan.agents]))
        head = json.dumps(self.head(), separators=(",", ":")).encode()
        return head[:-1] + b',"results":[' + b",".join(filter(None, parts)) + b"]}"

    def _known(self, team: TeamState) -> TeamOutcome | None:
        return team.final or self.snapshots.get(team.plan.team)

    def _unheard(self, team: TeamState) -> str:
        """The state of the agents of a team whose hub has not said how they are."""
        return str(AgentState.RUNNING if team.begun_s else AgentState.WAITING)

    def _coordinators(self) -> list[AgentResult]:
        """The coordinators as agents: one that took its team's part has done its own when that has ended."""
        if not self.request.hybrid:
            return []
        results = []
        for team in self.teams:
            state, reason = AgentState.WAITING, ""
            if team.final is not None:
                state = AgentState.DONE if team.begun_s else AgentState.UNDELIVERED
                reason = "" if team.begun_s else self.given_up or "no coordinator took its team"
            elif team.begun_s:
                state = AgentState.RUNNING
            exit_code = 0 if state is AgentState.DONE else None
            agent = coordinator_agent(team.plan.team)
            results.append(AgentResult(agent=agent, state=state, exit_code=exit_code, reason=reason))
        return results

    def _acknowledged_s(self, teams: list[TeamState]) -> float:
        last_s, missing, undelivered = 0.0, False, False
        for team in teams:
            known = self._known(team)
            last_s = max(last_s, team.begun_s)
            if known is None or known.unclaimed:
                missing = True
            else:
                last_s = max(last_s, known.last_ack_s)
                undelivered = undelivered or known.tally[AgentState.UNDELIVERED] > 0
        deadline_s = self.request.deadline_at_s
        if (missing or undelivered) and self.now_s >= deadline_s:
            return deadline_s
        return self.now_s if missing or not last_s else last_s

    def _hybrid(self) -> Hybrid:
        taken = sum(bool(team.begun_s) for team in self.teams)
        workers = Tally()
        for team in self.teams:
            known = self._known(team)
            workers.update(Tally({self._unheard(team): team.plan.size}) if known is None else known.tally)
        return Hybrid(
            mesh_delivery_rate_pct=100.0 * taken / len(self.teams),
            worker_delivery_rate_pct=workers.delivery_rate_pct,
            teams=[
                TeamPart(
                    team=team.plan.team,
                    coordinator=team.host,
                    agents=team.plan.size + self.request.hybrid,
                    coordination_time_ms=(self._acknowledged_s([team]) - self.request.accepted_at_s) * 1000,
                )
                for team in self.teams
            ],
        )
