"""V1's contract, read without any I/O: the lines that a V1 command prints, and what they amount to.

The last line, `delivery_rate=100.0 agents_coordinated=3 coordination_time_ms=12`, is required.
Lines `agent=ID state=STATE [exit_code=N] [output=TEXT]` before it are optional: with them each
agent has its own state, without them only the last line speaks for all.
"""

import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import unquote

from cfn.coordination import AgentResult, AgentState

_AGENT = re.compile(
    r"agent=(?P<agent>\S+) state=(?P<state>running|done|failed|undelivered|unknown)"
    r"(?: exit_code=(?P<code>-?[0-9]{1,5}))?(?: output=(?P<output>.*))?"
)
_LAST = re.compile(
    r"delivery_rate=(?P<rate>[0-9]{1,3}(?:\.[0-9]+)?) agents_coordinated=(?P<agents>[0-9]{1,6})"
    r" coordination_time_ms=[0-9]+(?:\.[0-9]+)?"
)


class V1Reading:
    """Collects the lines of one V1 command that was asked to run `agents`."""

    def __init__(self, agents: Sequence[str]) -> None:
        self._agents = agents
        self._results = {agent: AgentResult(agent=agent, state=AgentState.WAITING) for agent in agents}
        self._last: re.Match[str] | None = None
        self._garbage = ""

    @property
    def all_acknowledged(self) -> bool:
        """Whether every agent is known to have been started, or to be final."""
        return all(result.state is not AgentState.WAITING for result in self._results.values())

    @property
    def states(self) -> dict[str, int]:
        """How many agents are in each state so far; states that none is in are left out."""
        return dict(Counter(str(result.state) for result in self._results.values()))

    def feed(self, line: str) -> bool:
        """Take one line, without its newline. True if it acknowledged an agent for the first time."""
        match = _AGENT.fullmatch(line)
        if match and match["agent"] in self._results:
            before = self._results[match["agent"]]
            self._results[before.agent] = AgentResult(
                agent=before.agent,
                state=AgentState(match["state"]),
                exit_code=int(match["code"]) if match["code"] else None,
                output=unquote(match["output"] or "", errors="replace"),
            )
            return before.state is AgentState.WAITING
        last = _LAST.fullmatch(line)
        if last:
            self._last = last
        elif line.strip() and not self._garbage:
            self._garbage = line[:80]
        return False

    def results(self, *, exit_code: int | None, ended: str) -> tuple[list[AgentResult], str]:
        """Each agent's final result, in the order asked, and what is wrong with this V1 ("": nothing).

        `exit_code` is the command's, None if it was never started; `ended` says why it was ended
        from outside, else "". An agent that the lines leave open is unknown, since V1 may have
        started it; it is undelivered only if the command never ran, or says so.
        """
        if exit_code is None:
            return self._fill(AgentState.UNDELIVERED, ended), ended
        problem = ended or self._problem(exit_code)
        spoken = [result for result in self._results.values() if result.state is not AgentState.WAITING]
        if not spoken and not problem and self._last:
            return self._from_last_line(float(self._last["rate"]), int(self._last["agents"])), ""
        return self._fill(AgentState.UNKNOWN, problem or "V1 did not report it"), problem

    def _problem(self, exit_code: int) -> str:
        if self._last is None:
            seen = f"; it printed {self._garbage!r}" if self._garbage else ""
            return f"V1 exited {exit_code} without its last line (delivery_rate=...){seen}"
        if int(self._last["agents"]) > len(self._agents) or float(self._last["rate"]) > 100:
            return f"V1 reports {self._last[0]!r} for {len(self._agents)} agents"
        if exit_code != 0 and all(r.state is AgentState.WAITING for r in self._results.values()):
            return f"V1 exited {exit_code} after {self._last[0]!r}"
        return ""

    def _from_last_line(self, rate_pct: float, coordinated: int) -> list[AgentResult]:
        """Only counts are known; which agents they are is not, and the reason says so."""
        delivered = min(coordinated, round(len(self._agents) * rate_pct / 100))
        vague = (
            ""
            if delivered == len(self._agents)
            else f"V1 reports {rate_pct:g} % of {coordinated} and names no agents"
        )
        return [
            AgentResult(agent=agent, state=AgentState.DONE, exit_code=0, reason=vague)
            if index < delivered
            else AgentResult(agent=agent, state=AgentState.UNDELIVERED, reason=vague)
            for index, agent in enumerate(self._agents)
        ]

    def _fill(self, state: AgentState, reason: str) -> list[AgentResult]:
        return [
            AgentResult(agent=result.agent, state=self._open(result.state, state), reason=reason)
            if result.state in (AgentState.WAITING, AgentState.RUNNING)
            else result
            for result in self._results.values()
        ]

    @staticmethod
    def _open(now: AgentState, otherwise: AgentState) -> AgentState:
        return AgentState.UNKNOWN if now is AgentState.RUNNING else otherwise
