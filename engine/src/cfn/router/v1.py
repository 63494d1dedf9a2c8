"""V1 as the router calls it: one command per coordination, under the contract of v1_contract."""

import asyncio
import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cfn.config import Config
from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.errors import RefusedError
from cfn.ids import agent_ids
from cfn.paths import Paths
from cfn.router import process
from cfn.router.decision import uniform
from cfn.router.gate import Gate
from cfn.router.v1_contract import V1Reading

_CAPABILITIES_TIME_S = 2.0
# Weight of the newest command in the mean duration that the measured capacity is reckoned from.
_NEWEST = 0.1
_LONGEST_RETRY_S = 60
# What belongs to the router as a unit, and must not reach V1.
_PRIVATE = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Result:
    """What V1 made of its agents. `problem` is "" if it kept its contract; `ran` is False if nothing
    was started; `refused` is True if that is because too many were waiting, and then `retry_after_s` is
    how long that may last. `waited_s` is the time before its turn, `ran_s` that of the command."""

    coordination: Coordination
    problem: str = ""
    ran: bool = True
    refused: bool = False
    retry_after_s: int = 1
    waited_s: float = 0.0
    ran_s: float = 0.0


class V1:
    """Runs V1's command. `gate` bounds how many run at once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._takes_list: dict[tuple[str, ...], bool] = {}
        self._readings: dict[str, V1Reading] = {}
        self._mean_s: float | None = None
        self.gate = Gate("CFN_V1_CONCURRENCY")

    def capacity_per_s(self, config: Config) -> float | None:
        """Coordinations per second that V1 bears: as declared, else as many as run at once divided by
        how long one takes; None if neither is known yet."""
        if config.v1_capacity_per_s:
            return float(config.v1_capacity_per_s)
        return config.v1_concurrency / max(self._mean_s, 0.001) if self._mean_s is not None else None

    def free(self, config: Config) -> bool:
        """Whether a command could start at once."""
        return self.gate.running < config.v1_concurrency and not self.gate.waiting

    def progress(self, task_id: str) -> dict[str, int] | None:
        """How many agents of a running task are in each state so far; None if V1 does not run it."""
        reading = self._readings.get(task_id)
        return reading.states if reading else None

    def command(self, config: Config) -> list[str]:
        """The words of the command in force."""
        return shlex.split(config.v1_command) if config.v1_command else [str(self._paths.v1_command)]

    async def takes_list(self, config: Config) -> bool:
        """Whether V1 declares `agent-list` when asked for its --capabilities; asked once for each
        command that could be started."""
        words = self.command(config)
        key = tuple(words)
        if key not in self._takes_list:
            lines: list[str] = []
            ends_at = asyncio.get_running_loop().time() + _CAPABILITIES_TIME_S
            try:
                ended = await process.run(
                    [*words, "--capabilities"],
                    env=_environment(config, ""),
                    stdin=b"",
                    on_line=lines.append,
                    ends_at=lambda: ends_at,
                    max_output_bytes=4_096,
                )
            except OSError:
                return False
            self._takes_list[key] = ended.exit_code == 0 and "agent-list" in (line.strip() for line in lines)
        return self._takes_list[key]

    async def run(
        self,
        task_id: str,
        agents: Sequence[str],
        *,
        payload: bytes,
        config: Config,
        arrived_s: float,
        deadline_s: float,
        on_start: Callable[[], None] = lambda: None,
    ) -> V1Result:
        """Run the task for `agents` and return when each is final. Never raises for what V1 does.

        `arrived_s` (when the request came) and `deadline_s` (by when every agent must have been
        started) are times of the loop's clock. A V1 that acknowledges every agent as started may
        then take CFN_AGENT_TIMEOUT_TIME for them; one that does not is ended at the deadline.
        `on_start` is called when its turn has come, just before the command is started.
        """
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        try:
            await self.gate.enter(config.v1_concurrency, deadline_s - asked_s)
        except (RefusedError, TimeoutError) as error:
            refused = isinstance(error, RefusedError)
            reason = f"V1 is full: {error}" if refused else "V1 had no free slot before the deadline"
            elapsed_ms = (loop.time() - arrived_s) * 1000
            return V1Result(
                coordination=uniform(task_id, agents, AgentState.UNDELIVERED, reason, elapsed_ms=elapsed_ms),
                problem=reason,
                ran=False,
                refused=refused,
                retry_after_s=self._retry_after_s(config),
                waited_s=loop.time() - asked_s,
            )
        started_s = loop.time()
        try:
            on_start()
            result = await self._run(task_id, agents, payload, config, arrived_s, deadline_s)
        finally:
            self.gate.leave()
        ran_s = loop.time() - started_s
        self._mean_s = ran_s if self._mean_s is None else (1 - _NEWEST) * self._mean_s + _NEWEST * ran_s
        return replace(result, waited_s=started_s - asked_s, ran_s=ran_s)

    def _retry_after_s(self, config: Config) -> int:
        """When those that wait now should have had their turn."""
        capacity_per_s = self.capacity_per_s(config)
        if capacity_per_s is None:
            return 1
        return min(_LONGEST_RETRY_S, max(1, math.ceil(self.gate.waiting / capacity_per_s)))

    async def _run(
        self,
        task_id: str,
        agents: Sequence[str],
        payload: bytes,
        config: Config,
        arrived_s: float,
        deadline_s: float,
    ) -> V1Result:
        loop = asyncio.get_running_loop()
        reading = V1Reading(agents)
        acknowledged_s: float | None = None

        def on_line(line: str) -> None:
            nonlocal acknowledged_s
            if reading.feed(line):
                acknowledged_s = loop.time()

        def ends_at() -> float:
            if acknowledged_s is None or not reading.all_acknowledged:
                return deadline_s
            return max(deadline_s, acknowledged_s + config.agent_timeout_ms / 1000)

        argv = [*self.command(config), str(len(agents)), task_id]
        if list(agents) != agent_ids(len(agents)):
            argv.append("--agents-from-stdin")
            payload = " ".join(agents).encode() + b"\n" + payload
        exit_code: int | None = None
        self._readings[task_id] = reading
        try:
            ended = await process.run(
                argv,
                env=_environment(config, task_id),
                stdin=payload,
                on_line=on_line,
                ends_at=ends_at,
                # An agent's output may be percent-encoded, three characters for a byte.
                max_output_bytes=65_536 + len(agents) * (3 * config.max_output_bytes + 512),
            )
            exit_code = ended.exit_code
            results, problem = reading.results(
                exit_code=exit_code, ended=f"V1 was ended: {ended.reason}" if ended.reason else ""
            )
            if problem and ended.stderr:
                problem = f"{problem}; its standard error ends: {ended.stderr.splitlines()[-1]}"
        except OSError as error:
            results, problem = reading.results(
                exit_code=None, ended=f"V1 cannot be started: {argv[0]}: {error.strerror}"
            )
        finally:
            del self._readings[task_id]
        now = loop.time()
        return V1Result(
            coordination=_coordination(
                task_id, results, (acknowledged_s or now) - arrived_s, now - arrived_s
            ),
            problem=problem,
            ran=exit_code is not None,
        )


def _coordination(
    task_id: str, results: Sequence[AgentResult], acknowledged_s: float, total_s: float
) -> Coordination:
    return Coordination(
        task_id=task_id,
        coordination_time_ms=acknowledged_s * 1000,
        total_time_ms=total_s * 1000,
        results=tuple(results),
    )


def _environment(config: Config, task_id: str) -> dict[str, str]:
    """What V1 and its agents see: the router's environment without what is the unit's own."""
    inherited = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    return inherited | {
        "CFN_TASK_ID": task_id,
        "CFN_AGENT_COMMAND": config.agent_command,
        "CFN_MAX_OUTPUT": str(config.max_output_bytes),
    }
